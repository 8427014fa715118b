"""Certificates leave model and settings alone, and refuse what has none."""

import copy
import math

import pytest
import torch
from helpers.models import dropping, orthogonal
from helpers.norms import every_norm
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dplip
from dplip.certificates import Certifier, correct_radii
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.propagation import Walk


@every_norm
def test_a_model_is_traced_once_for_its_certificates(norm, monkeypatch):
    traces = []

    def walk(*given):
        traces.append(Walk(*given))
        return traces[-1]

    monkeypatch.setattr("dplip.certificates.radii.Walk", walk)
    dplip.certify(nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4), norm)
    assert len(traces) == 1


@every_norm
def test_a_certificate_is_the_same_within_autocast_and_every_other_setting(norm):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval(), torch.rand(50, 64)
    plain_radii = dplip.certify(model, x, norm)
    data = TensorDataset(x, model(x).argmax(1))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            with pytest.raises(ConfigurationError, match="autocast"):  # its predictions are not the certified ones
                dplip.certify(model, x, norm)
            torch.testing.assert_close(correct_radii(model, data, norm), plain_radii)
            assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(dplip.certify(model, x, norm), plain_radii)
    finally:
        torch.set_default_dtype(torch.float32)


@every_norm
def test_a_certifier_is_certify_with_the_slopes_kept(digits, norm):
    model, x, _ = digits
    certifier = Certifier(model, tuple(x.shape[1:]), norm)
    torch.testing.assert_close(torch.cat([certifier(part) for part in x.split(30)]), dplip.certify(model, x, norm))


def test_an_empty_batch_has_no_radii():
    certified = dplip.certify(orthogonal(), torch.zeros(0, 6))
    assert certified.shape == (0,) and certified.dtype == dplip.certify(orthogonal(), torch.zeros(1, 6)).dtype


def test_parts_of_a_batch_are_certified_alike(digits):
    model, x, _ = digits
    torch.testing.assert_close(dplip.certify(model, x, batch_size=7), dplip.certify(model, x), rtol=1e-4, atol=1e-5)


def test_modes_and_gradients_are_left_as_they_were():
    model = dropping().train()
    model[2].eval()
    modes = [m.training for m in model.modules()]
    x = torch.randn(5, 6)
    certified = dplip.certify(model, x)
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(certified, dplip.certify(copy.deepcopy(model).eval(), x))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not certified.requires_grad
    with pytest.raises(ConfigurationError):
        dplip.certify(model, x, norm=3)
    correct_radii(model, TensorDataset(x, torch.zeros(5, dtype=torch.int64)))
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("norm", [0, 3, -1, math.nan, "2"])
def test_a_norm_without_certificates_is_refused(norm):
    with pytest.raises(ConfigurationError, match="norm"):
        dplip.certify(orthogonal(), torch.zeros(1, 6), norm=norm)
    with pytest.raises(ConfigurationError, match="norm"):
        dplip.lipschitz(orthogonal(), (6,), norm=norm)


def test_a_model_that_draws_in_evaluation_mode_has_no_certificate():
    class Drawing(nn.Module):
        def __init__(self, training: bool) -> None:
            super().__init__()
            self.linear, self.active = nn.Linear(6, 3), training

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.linear(x), 0.5, self.active)

    assert float(dplip.certify(Drawing(False), torch.ones(1, 6))) > 0
    with pytest.raises(UnboundedOperationError, match="draws random numbers in evaluation mode"):
        dplip.certify(Drawing(True), torch.ones(1, 6))
    with pytest.raises(UnboundedOperationError, match="draws random numbers in evaluation mode"):
        dplip.certify_monotonic(Drawing(True), [1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "x",
    [torch.ones(2, 6).double(), torch.ones(2, 6).bfloat16(), torch.ones(2, 6).long(), [[1.0] * 6], torch.tensor(1.0)],
)
def test_inputs_that_are_no_batch_of_floats_are_refused(x):
    with pytest.raises(ConfigurationError, match=r"^x "):
        dplip.certify(orthogonal(), x)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ConfigurationError, match="scores"):
        dplip.certify(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
    with pytest.raises(ConfigurationError, match="empty"):
        correct_radii(orthogonal(), TensorDataset(torch.zeros(0, 6), torch.zeros(0)))
    with pytest.raises(UnboundedOperationError, match="BatchNorm"):
        dplip.certify(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), torch.zeros(2, 6))
