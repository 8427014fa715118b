"""A model is checked before it trains."""

from __future__ import annotations

import pytest
import torch
from helpers.separate import Twice, Windows, images, made, sequences, tokens, vectors
from helpers.separation_check import check_separation
from torch import Tensor, nn

from dplip.errors import MixedExamplesError
from dplip.runtime.secret import Secret, lent
from dplip.separation import Watch


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g.flip(0)


class Stateful(nn.Module):
    """It adds what it last saw, outside of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.cache: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.arange(3.0)
        return self.linear(x) + self.cache[len(x)]


def test_a_model_that_does_not_mix_has_a_template() -> None:
    model = made(Windows())
    state = torch.get_rng_state()
    template = check_separation(model, [images(7)], model)
    assert torch.equal(state, torch.get_rng_state())
    x = images(3)
    with Watch([x], 3, model) as watch:
        model(x)
    assert template.fits(watch.signature, 3)
    with Watch([x], 3, model) as watch:
        model(x) + 1
    assert not template.fits(watch.signature, 3)


def test_dropout_and_caches_are_no_obstacle() -> None:
    model = nn.Sequential(Stateful(), nn.Dropout())
    check_separation(model, [vectors(7)], model)


def test_a_number_is_no_tensor() -> None:
    """An operator takes a tensor or a number at the same place: neither is taken for the other."""
    x = vectors(5)
    for number in range(400):
        with Watch([x], 5) as watch:
            x * number
        assert dict(watch.signature.entries[0][0].args) == {"other": number}
        with Watch([x], 5) as watch:
            x * x
        assert watch.signature.entries[0][0].args == ()


def test_secret_masks_are_drawn_for_each_entry_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 3))
    template = check_separation(model, [vectors(7)], model)
    with lent(Secret(), True):
        for n in (1, 3, 7):
            x = vectors(n)
            with Watch([x], n, model) as watch:
                result = model(x)
            assert template.fits(watch.signature, n)
            result.sum().backward()


def test_weights_may_be_computed_and_cast() -> None:
    computed = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    scaled = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    model = nn.Sequential(computed, nn.ReLU(), scaled)
    check_separation(model, [vectors(7)], model, probe=False)  # the first moves with every pass
    with torch.autocast("cpu", torch.bfloat16):
        check_separation(nn.Linear(8, 3), [vectors(7)], probe=False)


def test_several_inputs_and_tokens() -> None:
    embedding = nn.Embedding(11, 8)
    check_separation(lambda ids, x: (embedding(ids) + x).flatten(1), [tokens(7), sequences(7)], embedding)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: x.mean(0), "mean"),
        (lambda x: x.transpose(0, 1), "along axis 0"),
        (lambda x: torch.zeros(len(x), 3), "no example"),
        (lambda x: Backwards.apply(x.requires_grad_() * 1), "custom autograd function"),
        (lambda x: Twice.apply(x.requires_grad_() * 1), "custom autograd function"),
        (lambda x: x / len(x), "number of examples"),
    ],
)
def test_a_model_that_mixes_is_refused(model, words) -> None:
    with pytest.raises(MixedExamplesError, match=words):
        check_separation(model, [vectors(7)])


def test_a_backward_that_mixes_is_found_by_the_probe() -> None:
    linear = nn.Linear(8, 8)
    linear.register_full_backward_hook(lambda module, given, sent: (given[0].flip(0),))
    with pytest.raises(MixedExamplesError):
        check_separation(lambda x: linear(torch.tanh(x)), [vectors(7)], linear)


def test_weights_chosen_by_the_number_of_examples_are_refused() -> None:
    model = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
    with pytest.raises(MixedExamplesError, match="other tensors"):
        check_separation(lambda x: model[len(x) // 6](x), [vectors(7)], model)
