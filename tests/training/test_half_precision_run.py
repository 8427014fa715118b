"""Steps under autocast: noised by what is enforced, refused unless told, resumed after a crash."""

import pytest
import torch
from helpers.gated import X, Y
from helpers.half import half, stock
from helpers.runs import Run, examples, interrupted, private
from torch import nn

import dplip
import dplip.nn as dn
from dplip.data import load
from dplip.errors import ConfigurationError, UnboundedOperationError
from dplip.losses import CrossEntropy

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
