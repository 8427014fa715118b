"""Enforced models: whatever their code, neighbouring sums lie within the radii; what mixes examples is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.enforced import CASES, SIZE, Gated, Recurrent, TwoInputs, Words, items, private
from torch import Tensor, nn
from torch.utils.data import default_collate

import dplip
from dplip.errors import ConfigurationError, MixedExamplesError, UnboundedOperationError
from dplip.losses import CrossEntropy
from dplip.separation import current
from dplip.training.calls import Calls

LOSS = CrossEntropy()


def gradients(model: nn.Module, loss: Any, optimizer: Any, batch: list[Any], seed: int = 0) -> dict[str, Tensor]:
    """The sum of the gradients of some items, as a step would take it."""
    calls = Calls(model)
    optimizer.zero_grad()
    call, targets = calls.of(default_collate(batch))
    torch.manual_seed(seed)
    loss(calls.select(model(*call[0], **call[1])), targets).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# Not "noise inside": neighbours draw their noise in another order.
@pytest.mark.parametrize("name", [name for name in CASES if name != "noise inside"])
def test_one_example_moves_the_sum_by_at_most_the_sensitivity(name: str) -> None:
    case = CASES[name]
    model, data = case.model(), items(case)
    model, optimizer, _ = private(model, case.loss, data)
    bounds, most = optimizer.sensitivities(), 0.0
    assert optimizer.enforced
    for scale in (1.0, 3.0):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        whole = gradients(model, case.loss, optimizer, data[:8])
        for left_out in (0, 3, 7):
            rest = gradients(model, case.loss, optimizer, data[:left_out] + data[left_out + 1 : 8])
            for key, bound in bounds.items():
                moved = float((whole[key] - rest[key]).norm()) / bound
                assert moved <= 1
                most = max(most, moved)
    assert most >= 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_any_code_trains(name: str) -> None:
    case = CASES[name]
    model = dplip.nn.bound_gradients(case.model().train())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = dplip.DPLipTrainer(
        model,
        loss=case.loss,
        optimizer=torch.optim.Adam(model.parameters(), 0.01),
        train_dataset=items(case),  # type: ignore[arg-type]
        eval_dataset=items(case, 10, seed=1),  # type: ignore[arg-type]
        batch_size=10,
        max_physical_batch_size=6,
        epochs=1,
        noise_multiplier=1.0,
        progress=False,
    ).fit()
    assert trainer.get_epsilon() > 0
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters())
    report = trainer.report()
    assert report["certified"]["accuracy"] == [] and report["utility"]["loss"] > 0


class Changing(Gated):
    """A model that misbehaves in a given way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.count = way, 0
        self.kept: Tensor | None = None
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        self.count += 1
        if self.way == "mean":
            return z - z.mean(0)
        if self.way == "count":
            return z / len(x)
        if self.way == "place":
            return z * torch.arange(1.0, len(x) + 1)[:, None]
        if self.way == "state":
            z = z + 0 if self.kept is None else z + self.kept[0]
            self.kept = z.detach()
        if self.way == "buffer":
            self.mean.copy_(z[0].detach())
        if self.way == "branch" and bool(z.sum() > 0):
            return z * 2
        if self.way == "hook" and z.requires_grad:
            z.register_hook(lambda g: g - g.mean(0))
        return z


@pytest.mark.parametrize("way", ["mean", "count", "place", "state", "buffer", "branch", "hook"])
def test_what_mixes_examples_is_refused(way: str) -> None:
    data = items(CASES["a product"])
    with pytest.raises(MixedExamplesError):
        model, optimizer, loader = private(Changing(way), LOSS, data)
        for x, y in loader:  # a state shows at the second pass
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()


def step(model: nn.Module, optimizer: Any, loader: Any, x: Tensor) -> None:
    """A step on a batch of the caller's own, which the loader is made to believe it handed out."""
    next(iter(loader))
    loader.handed_out = len(x)
    optimizer.zero_grad()
    LOSS(model(x), torch.zeros(len(x), dtype=torch.long)).backward()
    optimizer.step()


class Counting(Gated):
    """A model that does something else with some numbers of examples."""

    other = 9

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z / 2 if len(x) == self.other else z


@pytest.mark.parametrize("count", [1, 9])
def test_another_number_of_examples_must_run_the_same_operators(count: int) -> None:
    model, optimizer, loader = private(Counting(), LOSS, items(CASES["a product"]))
    model.other = count
    step(model, optimizer, loader, torch.randn(7, 6))
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ConfigurationError, match="other operators"):
        step(model, optimizer, loader, torch.randn(count, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_pairs_of_several_lengths_are_padded() -> None:
    data = [(torch.randn(1 + i % 6, 5), i % 3) for i in range(SIZE)]
    model = dplip.nn.bound_gradients(Recurrent())
    trainer = dplip.DPLipTrainer(
        model,
        loss=LOSS,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        train_dataset=data,  # type: ignore[arg-type]
        eval_dataset=data,  # type: ignore[arg-type]
        collate_fn=dplip.data.Padding(6, mask=False),
        batch_size=10,
        epochs=1,
        noise_multiplier=1.0,
        progress=False,
    ).fit()
    assert trainer.evaluate()["loss"] > 0


def test_an_input_may_have_a_gradient_of_its_own() -> None:
    """As hidden values have where frozen weights come first, with checkpoints after them."""
    model, optimizer, loader = private(Gated(), LOSS, items(CASES["a product"]))
    step(model, optimizer, loader, torch.randn(7, 6).requires_grad_())


class Stopped(Gated):
    stop = False

    def forward(self, x: Tensor) -> Tensor:
        if self.stop and torch.is_grad_enabled():
            raise KeyboardInterrupt
        return super().forward(x)


def test_nothing_is_watched_after_an_interrupt() -> None:
    model = dplip.nn.bound_gradients(Stopped())
    trainer = dplip.DPLipTrainer(
        model,
        loss=LOSS,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        train_dataset=items(CASES["a product"]),  # type: ignore[arg-type]
        batch_size=10,
        epochs=1,
        noise_multiplier=1.0,
        progress=False,
    )
    model.stop = True
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert current() is None and torch.equal(state, torch.get_rng_state())


class Largest(Gated):
    """A model that keeps the largest number of examples so far, which public passes would find."""

    way, largest = "sign", 1

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        if self.way == "radius":
            vars(self.a)["radius"] = float(max(len(x), 6))
        z = super().forward(x)
        return -z if self.way == "sign" and self.largest > 8 else z


@pytest.mark.parametrize("way", ["sign", "radius"])
def test_what_a_pass_leaves_behind_does_not_explain_it(way: str) -> None:
    model = Largest()
    model.way = way
    model, optimizer, loader = private(model, LOSS, items(CASES["a product"]))
    with pytest.raises(ConfigurationError, match="number computed of its size"):
        step(model, optimizer, loader, torch.randn(9, 6))


class Cooling(Gated):
    heat = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.heat


def test_attributes_and_radii_may_change_between_steps() -> None:
    model, optimizer, loader = private(Cooling(), LOSS, items(CASES["a product"]))
    drawn: list[float] = []
    optimizer.noise.add_ = lambda t, std: drawn.append(std)
    for heat in (0.5, 0.25):
        model.heat = heat
        for layer in (model.a, model.b, model.head):
            layer.radius = 1 / heat
        assert optimizer.sensitivities()["a.weight"] == pytest.approx(1 / heat, rel=0.01)
        step(model, optimizer, loader, torch.randn(7, 6))
        assert min(drawn[-6:]) >= 1 / heat


def test_a_batch_is_noised_for_the_largest_radius_of_its_passes() -> None:
    model, optimizer, loader = private(Gated(), LOSS, items(CASES["a product"]))
    drawn: list[float] = []
    optimizer.noise.add_ = lambda t, std: drawn.append(std)
    next(iter(loader))
    loader.handed_out = 8
    for radius in (3.0, 1.0):
        model.a.radius = radius
        LOSS(model(torch.randn(4, 6)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
    assert sum((r / s) ** 2 for r, s in zip([3, 3, 1, 1, 1, 1], drawn, strict=True)) <= 1


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rest = nn.Linear(6, 6), Gated()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))


def test_an_input_that_a_part_of_the_model_computed_is_refused() -> None:
    """As when hidden values are mixed in the loop, where no watch sees it."""
    model, optimizer, loader = private(Stem(), LOSS, items(CASES["a product"]))
    x = model.stem(torch.randn(7, 6))
    with pytest.raises(ConfigurationError, match=r"input.*stem\.weight"):
        step(model, optimizer, loader, x - x.mean(0))


class Half(Gated):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize("name", ["inside", "words", "recurrent", "checkpoints", "tied"])
def test_half_precision_is_one_more_way_to_run(name: str) -> None:
    case = CASES.get(name, CASES["a product"])
    model = dplip.nn.bound_gradients(Half() if name == "inside" else case.model())
    trainer = dplip.DPLipTrainer(
        model,
        loss=case.loss,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        train_dataset=items(case),  # type: ignore[arg-type]
        batch_size=10,
        epochs=1,
        noise_multiplier=1.0,
        autocast=None if name == "inside" else torch.bfloat16,
        progress=False,
    ).fit()
    assert trainer.get_epsilon() > 0


def test_a_radius_that_is_set_later_is_the_one_that_its_passes_are_noised_for() -> None:
    model, optimizer, loader = private(Gated(), LOSS, items(CASES["a product"]))
    assert optimizer.sensitivities()["a.weight"] == pytest.approx(1.0, rel=0.01)
    model.a.radius = model.b.radius = 3.0
    drawn: list[float] = []
    optimizer.noise.add_ = lambda t, std: drawn.append(std)
    step(model, optimizer, loader, torch.randn(7, 6))
    assert optimizer.sensitivities()["a.weight"] >= 3.0 and optimizer.sensitivities()["head.weight"] < 1.1
    spent = sum((bound / std) ** 2 for bound, std in zip(optimizer.sensitivities().values(), drawn, strict=True))
    assert spent <= 1 + 1e-6  # a Gaussian of multiplier 1


def test_a_node_refuses_examples_that_are_not_in_front() -> None:
    from dplip.nn.bounded.linear import LinearGradients
    from dplip.separation import Watch

    layer, x = dplip.nn.BoundedLinear(6, 2), torch.randn(4, 5, 6)
    with Watch([x], 4), pytest.raises(MixedExamplesError, match="axis 0"):
        LinearGradients.apply(x.transpose(0, 1), layer.weight, layer.bias, None, 1.0, None)


def test_a_parameter_that_no_layer_bounds_is_refused_by_name() -> None:
    class Squared(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.linalg.svdvals(self.a.weight).sum()

    with pytest.raises(UnboundedOperationError, match=r"a\.weight"):
        private(Squared(), LOSS, items(CASES["a product"]))


def test_a_parameter_that_is_not_used_is_refused_by_name() -> None:
    class More(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

    with pytest.raises(UnboundedOperationError, match=r"spare\.weight.*not used"):
        private(More(), LOSS, items(CASES["a product"]))


def test_a_parameter_that_is_thawed_later_has_its_noise() -> None:
    model = Gated()
    model.a.requires_grad_(False)
    model, optimizer, loader = private(model, LOSS, items(CASES["a product"]))
    assert "a.weight" not in optimizer.sensitivities()
    dplip.nn.bound_gradients(model.a.requires_grad_(True))
    dplip.nn.bound_gradients(model)
    assert optimizer.sensitivities()["a.weight"] >= 1
    before = model.a.weight.detach().clone()
    for x, y in loader:
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    assert not torch.equal(before, model.a.weight)


def wrong_calls() -> dict[str, tuple[Any, str]]:
    mask = torch.ones(10, 7)
    ids = torch.zeros(10, 7, dtype=torch.long)
    return {
        "a mask of another shape": (lambda m: m(ids, mask[:, :5]), r"shape \(5,\)"),
        "ids of another type": (lambda m: m(ids.int(), mask), r"int32"),
        "longer sequences": (lambda m: m(ids.repeat(1, 2)[:, :7], mask), ""),
        "a keyword": (lambda m: m(ids, mask=mask), "in the same way"),
        "evaluation mode": (lambda m: m.eval()(ids, mask), "evaluation mode"),
    }


@pytest.mark.parametrize("name", [n for n, (_, words) in wrong_calls().items() if words])
def test_another_call_is_refused_in_words_and_nothing_is_charged(name: str) -> None:
    case = CASES["words"]
    model, optimizer, loader = private(Words(), case.loss, items(case))
    call, words = wrong_calls()[name]
    next(iter(loader))
    loader.handed_out = 10
    weights = [p.detach().clone() for p in model.parameters()]
    try:
        case.loss(call(model), torch.zeros(10, dtype=torch.long)).backward()
    except (IndexError, RuntimeError):
        return  # torch refused it first
    with pytest.raises(ConfigurationError, match=words):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_examples_of_another_length_are_refused_in_words() -> None:
    """A model that takes any length: the longest of a batch would depend on its other examples."""
    model, optimizer, loader = private(Recurrent(), LOSS, items(CASES["recurrent"]))
    with pytest.raises(ConfigurationError, match=r"shape \(4, 5\).*Padding"):
        step(model, optimizer, loader, torch.randn(7, 4, 5))


def test_layers_that_bound_nothing_are_refused_with_the_way_out() -> None:
    model = Recurrent().train()
    with pytest.raises(UnboundedOperationError, match="bound_gradients"):
        dplip.PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(items(CASES["recurrent"]), 10),  # type: ignore[arg-type]
            criterion=LOSS,
            noise_multiplier=1.0,
        )


def test_the_sensitivity_of_an_example_is_that_of_the_radii() -> None:
    case = CASES["two inputs"]
    model = dplip.nn.bound_gradients(TwoInputs().train(), 0.5)
    example = dplip.Example((torch.zeros(1, 5, 5), torch.zeros(5)))
    found = dplip.sensitivity(model, case.loss, example)
    assert list(found.values()) == pytest.approx([0.5] * 6, rel=1e-4)
    assert SIZE == len(items(case))


def test_a_radius_stays_the_same_for_all_parts_of_a_batch() -> None:
    """Their number is private, and the noise would tell it."""
    model, optimizer, loader = private(Gated(), LOSS, items(CASES["a product"]), 20, max_physical_batch_size=4)
    changed = False
    with pytest.raises(ConfigurationError, match="a radius"):
        for x, y in loader:
            LOSS(model(x), y).backward()
            optimizer.step()
            if not loader.complete:
                model.a.radius, changed = model.a.radius + 1.0, True
    assert changed
