"""What new users type of certificates, monotone models and tables: it works, or is refused in words that lead on."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dplip
import dplip.nn as dn
from dplip.data import Column, Schema
from dplip.errors import DPLipError

X = torch.rand(40, 8)
SEQUENCES = torch.rand(40, 5, 8)


def lipschitz_model() -> nn.Module:
    return nn.Sequential(dn.BallProjection(1.0), dn.OrthogonalLinear(8, 2))


class Reader(nn.Module):
    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o(self.r(x)[0][:, -1])


class OneStep(Reader):
    """Of a table, which it reads as sequences of one."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x[:, None])


def table(levels: tuple[str, ...]) -> Schema:
    return Schema(Column("y", "categorical", levels=levels), (Column("x", "numeric", 0.0, 1.0),))


NO_CERTIFICATE = r"only bounds that are propagated give a certificate.*docs/models\.md"

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one input": (lambda: dplip.certify(lipschitz_model(), X[0]), r"x\[:1\] of shape \(1,\).*x\[None\]"),
    "ids": (lambda: dplip.certify(lipschitz_model(), X.long()), r"x of torch\.int64.*float32 or float64"),
    "a certificate of an enforced model": (
        lambda: dplip.certify(dn.bound_gradients(Reader()), SEQUENCES),
        rf"line \d+ of .*{NO_CERTIFICATE}",
    ),
    "its constant": (lambda: dplip.lipschitz(dn.bound_gradients(Reader()), (5, 8)), NO_CERTIFICATE),
    "its monotonicity": (
        lambda: dplip.certify_monotonic(dn.bound_gradients(OneStep(1)), [1] * 8),
        NO_CERTIFICATE,
    ),
    "directions in words": (
        lambda: dn.Monotonic(nn.Linear(3, 1), ["+", 0, 0]),  # type: ignore[arg-type]
        r"directions=\['\+', 0, 0\]: give one of the numbers -1, 0 and \+1",
    ),
    "directions of several lengths": (
        lambda: dn.Monotonic(nn.Linear(2, 1), [[1, 0], [1]]),
        r"directions=\[\[1, 0\], \[1\]\]: give one of the numbers",
    ),
    "directions of a proof, in words": (
        lambda: dplip.certify_monotonic(lipschitz_model(), ["+"] * 8),  # type: ignore[arg-type]
        r"give one of the numbers -1, 0 and \+1",
    ),
    "three levels": (
        lambda: table(("low", "mid", "high")),
        r"levels=\['low', 'mid', 'high'\].*Give two levels.*dplip\.DPLipTrainer with dplip\.losses\.CrossEntropy",
    ),
    "delta in words": (lambda: dplip.PrivacyEngine().get_epsilon("1e-5"), r"delta='1e-5'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words_that_lead_on(name):
    run, words = REFUSED[name]
    with pytest.raises(DPLipError, match=f"(?s){words}"):
        run()


def test_three_classes_of_a_table_are_refused_as_scikit_learn_has_it():
    words = r"Only binary classification.*with 3 classes.*OneVsRestClassifier.*dplip\.DPLipTrainer"
    with pytest.raises(ValueError, match=words):
        dplip.DPLipClassifier().fit(X.numpy(), [0, 1, 2, 1] * 10)


def test_values_beyond_their_ranges_are_named():
    given = X.numpy() * [1, 1e5, 1, 1, 1, 1, 1, -1e5]
    with pytest.warns(UserWarning, match=r"all values of x1, x7 lie beyond.*low= and high= in the features' own units"):
        dplip.DPLipClassifier(epochs=1).fit(given, [0, 1] * 20)
    with warnings.catch_warnings(record=True) as seen:
        dplip.DPLipClassifier(low=[0.0] * 7 + [-1e5], high=[1, 1e5, *[1] * 6], epochs=1).fit(given, [0, 1] * 20)
    assert not any("range" in str(warning.message) for warning in seen)


def test_an_unknown_name_leads_to_the_list_of_names():
    with pytest.raises(AttributeError, match=r"'tabular': docs/api\.md lists"):
        dplip.tabular  # noqa: B018


def test_kept_slopes_certify_what_certify_does():
    """The documented fast path leaves no rounding out."""
    model = lipschitz_model()
    certifier = dplip.certificates.Certifier(model, (8,))
    assert torch.equal(certifier(X), dplip.certify(model, X))
