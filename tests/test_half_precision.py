"""Training under torch.autocast: no example exceeds what its layers enforce, and nothing propagated is relied on."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import Run, examples, interrupted, private
from torch import nn

import dplip
import dplip.nn as dn
from dplip.audit.gradient import gradient_search
from dplip.data import load
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy
from dplip.norms import Norms
from dplip.propagation import Walk
from dplip.rules import registry
from dplip.sensitivities import enforced_sensitivity
from dplip.sensitivities.propagated import constant_sensitivity

torch.set_num_threads(1)

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
X = 3 * torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
LAYERS = {
    "vector": (lambda: dn.BoundedLinear(6, 4, radius=0.7), (6,), (4,)),
    "tokens": (lambda: dn.BoundedLinear(6, 4, radius=0.7), (5, 6), (5, 4)),
    "narrow": (lambda: dn.BoundedLinear(3, 40, radius=0.7), (3,), (40,)),
    "image": (lambda: dn.BoundedConv2d(2, 3, 3, padding=1, radius=0.7), (2, 4, 5), (3, 4, 5)),
    "patches": (lambda: dn.BoundedConv2d(2, 4, 2, 2, radius=0.7), (2, 2, 2), (4, 1, 1)),
    "groups": (lambda: dn.BoundedConv2d(2, 4, 2, groups=2, radius=0.7), (2, 4, 4), (4, 3, 3)),
}


def half(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def stock(radius: float = 0.5) -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8))
    return dn.bound_gradients(nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 4)), radius)


def length(t: torch.Tensor) -> float:
    return float(t.double().norm())


# ------------------------------------------------------------------------------------------------------- layers


@HALF
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_no_example_exceeds_the_radius_whatever_meets_in_the_layer(name, backward_inside, dtype):
    make, shape, out = LAYERS[name]
    layer, generator = make(), torch.Generator().manual_seed(0)
    sizes = [0.0, 1e-45, 1e-39, 6e-8, 1e-3, 1.0, 300.0, 1e15, 1e30, 3e38, math.inf, math.nan]
    longest = {"weight": 0.0, "bias": 0.0}
    for a, b in itertools.product(sizes, sizes):
        for equal in (True, False):
            x = a * (torch.ones(1, *shape) if equal else torch.randn(1, *shape, generator=generator))
            v = b * (torch.ones(1, *out) if equal else torch.randn(1, *out, generator=generator))
            layer.zero_grad()
            with half(dtype):
                z = layer(x)
                if backward_inside:
                    z.backward(v.to(z.dtype))
            if not backward_inside:
                z.backward(v.to(z.dtype))
            assert z.dtype == dtype
            for key, p in layer.named_parameters():
                assert p.grad.dtype == torch.float32
                assert length(p.grad) <= 0.7  # and NaN is not
                longest[key] = max(longest[key], length(p.grad))
    assert longest["bias"] > 0.99 * 0.7
    assert longest["weight"] > (0.99 * 0.7 if name in ("vector", "narrow", "patches") else 0.1)


@HALF
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_the_float32_layer_s_of_the_rounded_tensors(name, dtype):
    """Bit for bit, on a batch: so whatever is proved of that layer holds."""
    make, shape, out = LAYERS[name]
    layer, generator = make(), torch.Generator().manual_seed(0)
    x = (9 * torch.randn(64, *shape, generator=generator)).to(dtype)
    v = torch.randn(64, *out, generator=generator).to(dtype)
    found, below = [], []
    for rounded in (True, False):
        layer.zero_grad()
        here = (x if rounded else x.float()).clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=rounded):
            z = layer(here)
        z.backward(v.to(z.dtype))
        assert here.grad.dtype == here.dtype
        found.append([p.grad.clone() for p in layer.parameters()])
        below.append(here.grad.float())
    assert all(map(torch.equal, *found))
    # What goes on to the layers below is a product in half precision.
    assert 0 < float((below[0] - below[1]).abs().max()) < 0.05


def test_gradients_of_single_examples_by_vmap_keep_the_radius():
    layer = dn.BoundedLinear(6, 4, radius=0.25)

    def score(weight, x):
        z = torch.func.functional_call(layer, {"weight": weight, "bias": layer.bias}, (x[None],))
        return 100 * z.float().square().sum()

    with half():
        each = torch.vmap(torch.func.grad(score), in_dims=(None, 0))(layer.weight.detach(), X).detach()
    norms = each.double().flatten(1).norm(dim=1)
    assert each.dtype == torch.float32 and bool((norms <= 0.25).all())
    assert bool((norms > 0.99 * 0.25).all())


@HALF
def test_a_compiled_layer_keeps_its_radius(dtype):
    torch._dynamo.reset()
    layer = dn.BoundedLinear(6, 4, radius=0.25)
    layer.compile(backend="aot_eager", dynamic=False)
    for size in (1.0, 1e4, math.inf, math.nan):
        with half(dtype):
            z = layer(X[:1] * size)
        layer.zero_grad()
        z.backward(torch.ones_like(z))
        assert length(layer.weight.grad) <= 0.25 and length(layer.bias.grad) <= 0.25
    torch._dynamo.reset()


# ------------------------------------------------------------------------------------------------------- models


@HALF
def test_no_ascent_finds_a_gradient_beyond_what_is_enforced(dtype):
    model = stock()
    declared = enforced_sensitivity(Walk(model, (6,)))
    assert all(0.5 <= bound < 0.5 * (1 + 1e-4) for bound in declared.values())
    assert list(declared) == list(dict(model.named_parameters()))
    for scale in (1e-3, 1.0, 100.0):
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        with half(dtype):
            found = gradient_search(model, CrossEntropy(), (6,), starts=6, steps=6)
        assert found.tried > 30
        assert all(found.attained[name] <= bound for name, bound in declared.items())
        with torch.no_grad():
            for p in model.parameters():
                p.div_(scale)
        if scale == 1.0:
            assert all(found.attained[name] > 0.99 * declared[name] for name in declared if name[0] in "46")


@pytest.mark.parametrize("count", [1, 2, 17, 100, 255, 1023])
def test_a_row_does_not_depend_on_the_batch(count):
    """What the bounds assume of torch: a sum changes by one example's share, and not by how the others round."""
    model = dn.bound_gradients(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 64, generator=generator)

    def rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.clone().requires_grad_()
        with half():
            z = model(x)
            CrossEntropy()(z, torch.zeros(len(x), dtype=torch.int64)).backward()
        return z.detach(), x.grad

    for all_rows, some in zip(rows(x), rows(x[-count:]), strict=True):
        assert torch.equal(all_rows[-count:], some)


@pytest.mark.parametrize("kind", ["equal", "near", "positive", "opposed"])
def test_neighbouring_sums_at_batch_65536_lie_within_the_sensitivity(kind):
    batch, generator = 65_536, torch.Generator().manual_seed(0)
    model = dn.bound_gradients(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)), 0.3)
    run = private(model, input_shape=(16,), half_precision=True)
    run.batches.expected_batch_size = float(batch)
    x = 2 * torch.rand(1, 16, generator=generator).expand(batch, 16)
    if kind != "equal":
        x = (
            9 * torch.rand(batch, 16, generator=generator)
            if kind == "positive"
            else x + 0.1 * torch.rand(batch, 16, generator=generator)
        )
    y = torch.full((batch,), 2) if kind != "opposed" else torch.arange(batch) % 3

    def summed(without: int | None = None) -> dict[str, torch.Tensor]:
        kept = torch.arange(batch) != (-1 if without is None else without)
        model.zero_grad()
        with half():
            run.loss(model(x[kept]), y[kept]).backward()
        return {name: p.grad.double() for name, p in model.named_parameters()}

    declared, whole = run.optimizer.sensitivities(), summed()
    for without in (0, 20_000, batch - 1):
        moved = {name: length(whole[name] - total) for name, total in summed(without).items()}
        assert all(moved[name] <= declared[name] for name in declared)
        assert max(moved[name] / declared[name] for name in declared) > 0.54  # the rest is for rounding


def test_a_bound_that_is_propagated_is_not_used():
    """It does not hold: the loss's gradient, of norm 1 before it is rounded, exceeds 1 after it."""
    model = nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 4, radius=2.0))
    propagated = constant_sensitivity(Walk(model, (6,)), CrossEntropy(normalize=True))
    assert propagated["1.weight"] < 1.0001 and propagated["1.bias"] < 1.0001
    run = private(model, loss=CrossEntropy(normalize=True), half_precision=True)
    declared = run.optimizer.sensitivities()
    assert all(2.0 <= bound < 2.001 for bound in declared.values())
    longest = 0.0
    for x, y in zip(X.repeat(10, 1), torch.arange(120) % 4, strict=True):
        model.zero_grad()
        with half():
            run.loss(model(x[None]), y[None]).backward()
        longest = max(longest, length(model[1].bias.grad))
        with torch.no_grad():
            model[1].weight.mul_(1.03)
    assert propagated["1.bias"] * 1.001 < longest <= declared["1.bias"]


def test_shared_layers_add_up_and_frozen_ones_need_no_bound():
    layer = dn.BoundedLinear(6, 6, radius=0.5)
    model = nn.Sequential(nn.Linear(6, 6).requires_grad_(False), layer, nn.Tanh(), layer)
    declared = enforced_sensitivity(Walk(model, (6,)))
    assert list(declared) == ["1.weight", "1.bias"]
    assert all(1.0 <= bound < 1.0001 for bound in declared.values())


class Used(nn.Module):
    """A bounded layer whose weight is used once more, outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ball, self.layer, self.gate = dn.BallProjection(1.0), dn.BoundedLinear(6, 6), dn.GradientBall(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(F.linear(self.ball(torch.tanh(self.layer(x))), self.layer.weight))


class Doubled(dn.BoundedLinear):
    """A subclass whose forward is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def one_stock_layer() -> nn.Module:
    return nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 6), nn.Linear(6, 4), dn.GradientBall(1.0))


def one_in_evaluation_mode() -> nn.Module:
    model = nn.Sequential(dn.BallProjection(1.0), dn.BoundedLinear(6, 6), dn.BoundedLinear(6, 4))
    model[2].eval()
    return model


def a_subclass_with_a_rule_that_is_its_own() -> nn.Module:
    @dplip.rule(Doubled)
    def doubled(module: Doubled, x: Norms) -> tuple[Norms, object]:
        bounds = {"weight": Norms((4, 6), l2=2.0), "bias": Norms((4,), l2=2.0)}
        return Norms((4,)), lambda v: ((Norms(x.shape),), bounds)

    return nn.Sequential(Doubled(6, 4))


@pytest.fixture
def rules_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", registry.registered())
    monkeypatch.setattr(registry, "_CLASSES", set(registry._CLASSES))


@pytest.mark.parametrize(
    "make", [one_stock_layer, one_in_evaluation_mode, Used, a_subclass_with_a_rule_that_is_its_own]
)
def test_a_parameter_that_no_layer_bounds_by_itself_is_refused(make, rules_as_before):
    model = make()
    private(model)  # in float32 it is bounded
    with pytest.raises(UnboundedOperationError, match="a trainable parameter whose gradient no layer bounds by itself"):
        private(model, half_precision=True)


def test_a_subclass_without_a_rule_is_refused():
    with pytest.raises(UnboundedOperationError, match="custom autograd function"):
        private(nn.Sequential(Doubled(6, 4)), half_precision=True)


# -------------------------------------------------------------------------------------------------------- steps


def around_all(run: Run) -> None:
    with half():
        run.loss(run.model(X), Y).backward()


def around_the_model(run: Run) -> None:
    with half():
        z = run.model(X)
    run.loss(z, Y).backward()


def around_the_backward_pass(run: Run) -> None:
    value = run.loss(run.model(X), Y)
    with half():
        value.backward()


def around_model_and_loss(run: Run) -> None:
    with half():
        value = run.loss(run.model(X), Y)
    value.backward()


WAYS = pytest.mark.parametrize(
    "way", [around_all, around_the_model, around_the_backward_pass, around_model_and_loss], ids=lambda f: f.__name__
)


@WAYS
@pytest.mark.parametrize("bounded", [False, True])
def test_autocast_is_refused_unless_the_optimizer_was_told(way, bounded):
    model = stock() if bounded else nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    run = private(model)
    run.batches.give(len(X))
    before = run.weights()
    with pytest.raises(ConfigurationError, match=r"torch.autocast was on.*bound_gradients.*half_precision=True"):
        way(run)
        run.optimizer.step()
    assert not run.charged and not run.noise.draws
    assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())


@WAYS
def test_a_step_under_autocast_is_noised_by_what_is_enforced(way):
    run = private(stock(), half_precision=True)
    run.batches.give(len(X))
    way(run)
    gradients = run.released()
    assert all(g.dtype == torch.float32 and bool(g.any()) for g in gradients.values())
    run.optimizer.step()
    assert len(run.charged) == 1 and len(run.noise.draws) == len(gradients)
    run.step(X, Y)  # and float32 may be had as well
    assert len(run.charged) == 2


class Inside(nn.Module):
    """A model that turns autocast on and off by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.ball, self.layer = dn.BallProjection(1.0), nn.Linear(6, 4)
        self.on = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(ON)):
            return self.layer(self.ball(x)).float()


ON: list[bool] = []


def test_autocast_inside_the_model_is_seen():
    run = private(Inside())
    ON.append(True)
    try:
        with pytest.raises(ConfigurationError, match=r"torch.autocast was on"):
            run.step(X, Y)
    finally:
        ON.clear()


def test_parameters_in_half_precision_stay_refused():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(UnboundedOperationError, match=r"model.float\(\).*half precision"):
            private(stock().to(dtype), half_precision=True)


# ------------------------------------------------------------------------------------------------------ trainer


def trainer(
    autocast: torch.dtype | None = torch.bfloat16, folder=None, model=None, lr=0.1, **arguments
) -> dplip.DPLipTrainer:
    model = stock() if model is None else model
    given = {"train_dataset": examples(80), "eval_dataset": examples(40, seed=1), "batch_size": 20, "epochs": 3}
    return dplip.DPLipTrainer(
        model,
        loss=CrossEntropy(normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        target_epsilon=8.0,
        progress=False,
        output_dir=folder,
        autocast=autocast,
        **{**given, **arguments},
    )


@pytest.mark.parametrize("autocast", [torch.float32, torch.float64, torch.int8, "bfloat16", True])
def test_other_types_are_refused(autocast):
    with pytest.raises(ConfigurationError, match=r"autocast=.*torch.bfloat16, torch.float16, or None"):
        trainer(autocast)


def test_a_model_that_is_not_fit_for_it_is_refused_before_anything_is_trained():
    with pytest.raises(UnboundedOperationError, match=r"^1\.weight"):
        trainer(model=nn.Sequential(dn.BallProjection(1.0), nn.Linear(6, 4)))


def digits(autocast: torch.dtype | None, seed: int) -> float:
    data = load("digits")
    torch.manual_seed(seed)
    model = dn.bound_gradients(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 1.0)
    run = trainer(
        autocast,
        model=model,
        train_dataset=data.train,
        eval_dataset=data.test,
        batch_size=256,
        epochs=20,
        seed=seed,
        lr=0.5,
    ).fit()
    report = run.report()
    assert report["privacy"]["autocast"] == (None if autocast is None else "bfloat16")
    assert report["privacy"]["epsilon"] == pytest.approx(8.0, rel=0.02)
    return report["utility"]["accuracy"]


def test_digits_are_learnt_as_well_as_in_float32():
    pairs = [(digits(torch.bfloat16, seed), digits(None, seed)) for seed in range(3)]
    ours, float32 = (sum(column) / len(column) for column in zip(*pairs, strict=True))
    assert float32 > 0.8 and abs(ours - float32) < 0.02


def test_a_run_goes_on_after_a_crash(tmp_path):
    interrupted(trainer(folder=tmp_path, checkpoint_every=2), 5)
    resumed = trainer(folder=tmp_path, checkpoint_every=2).fit(resume=True)
    assert resumed.accountant.num_steps == resumed.steps == 12
    assert dplip.records.read_report(tmp_path)["privacy"]["autocast"] == "bfloat16"
