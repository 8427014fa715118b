"""What moves the weights is the noisy gradient alone, whatever hooks and optimizers come with it."""

import copy

import pytest
import torch
from helpers.models import built, plain
from helpers.runs import X, Y, examples, private
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dplip import DPLipTrainer, PoissonLoader
from dplip.errors import ConfigurationError
from dplip.losses import CrossEntropy
from dplip.records import Ledger


def accumulator(p):
    return p.expand_as(p).grad_fn.next_functions[0][0]


@pytest.mark.parametrize("kind", ["after", "before", "before, in place", "before, through data"])
def test_a_hook_on_what_accumulates_a_gradient_is_seen(kind):
    model = built("plain")[0]
    run = private(model)
    kept = [(accumulator(p), p) for p in model.parameters()]
    for node, p in kept:
        if kind == "after":
            node.register_hook(lambda *_, p=p: (p.grad.mul_(100.0), None)[1])
        elif kind == "before":
            node.register_prehook(lambda gs: tuple(g * 100 for g in gs))
        elif kind == "before, in place":
            node.register_prehook(lambda gs: [g.mul_(100) for g in gs] and None)
        else:
            node.register_prehook(lambda gs: [g.data.mul_(100) for g in gs] and None)
    run.backward(X, Y)
    with pytest.raises(ConfigurationError, match="not what the backward pass brought"):
        run.optimizer.step()
    assert not run.charged


@pytest.mark.parametrize("order", ["together", "before", "after", "a layer's forward"])
def test_a_gradient_beside_the_models_output_is_refused(order):
    model = built("plain")[0]
    run = private(model)
    run.batches.give(len(X))
    penalty = len(X) * model[1].weight.square().sum()
    if order == "a layer's forward":
        penalty = type(model[1]).forward(model[1], X).sum()
    if order == "before":
        penalty.backward()
    value = run.loss(model(X), Y)
    (value if order in ("before", "after") else value + penalty).backward()
    if order == "after":
        penalty.backward()
    with pytest.raises(ConfigurationError, match=r"otherwise than through|has changed since|not what"):
        run.optimizer.step()
    assert not run.charged


class MainGrad(torch.optim.SGD):
    """Gradients of its own, as libraries of distributed training keep them."""

    def step(self, closure=None):
        return super().step(closure)


def test_an_optimizer_with_a_step_of_its_own_is_taken_by_an_explicit_word_alone():
    model = plain()
    with pytest.raises(ConfigurationError, match="trust_optimizer=True"):
        private(model, optimizer=MainGrad(model.parameters(), lr=0.1))
    run = private(model, optimizer=MainGrad(model.parameters(), lr=0.1), trust_optimizer=True)
    run.step(X, Y)
    assert run.optimizer.trusted == "MainGrad" and private(plain()).optimizer.trusted is None


@pytest.mark.parametrize("which", ["pre", "post", "global", "step", "part"])
def test_what_is_hooked_into_the_step_later_is_refused(which):
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run = private(model, optimizer=inner)
    run.backward(X, Y)
    handle = None
    if which == "pre":
        inner.register_step_pre_hook(lambda *_: None)
    elif which == "post":
        inner.register_step_post_hook(lambda *_: None)
    elif which == "global":
        handle = register_optimizer_step_pre_hook(lambda *_: None)
    elif which == "step":
        inner.step = lambda: None  # type: ignore[assignment, misc]
    else:
        inner._init_group = lambda *_: None
    try:
        with pytest.raises(ConfigurationError, match=r"hooks run around|not torch's own"):
            run.optimizer.step()
    finally:
        if handle is not None:
            handle.remove()
    assert not run.charged


def test_the_step_of_the_wrapped_optimizer_is_refused():
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run = private(model, optimizer=inner)
    run.backward(X, Y)
    with pytest.raises(ConfigurationError, match="adds no noise"):
        inner.step()


def test_a_stale_gradient_of_a_frozen_layer_moves_nothing():
    model = plain()
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    run.backward(X, Y)
    run.batches.take()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.detach().clone()
    run.batches.give(0)
    run.optimizer.step()
    assert torch.equal(model.get_parameter("1.weight"), before)


@pytest.mark.parametrize("name", ["loss", "neighboring", "batches", "model", "original", "noise"])
def test_what_a_charge_depends_on_is_fixed(name):
    run = private(plain())
    with pytest.raises(ConfigurationError, match="stays what it was"):
        setattr(run.optimizer, name, getattr(run.optimizer, name))


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -0.1, torch.tensor(-1.0), torch.ones(2)])
def test_a_learning_rate_that_is_none_is_refused_at_the_step(rate):
    model = plain()
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    run.backward(X, Y)
    run.optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(ConfigurationError, match="learning rate"):
        run.optimizer.step()
    assert not run.charged


def test_a_state_loaded_behind_the_back_is_the_one_that_is_seen():
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run = private(model, optimizer=inner)
    inner.load_state_dict(inner.state_dict())
    assert run.optimizer.param_groups is inner.param_groups
    run.step(X, Y)


def test_a_schedule_cannot_be_stepped_between_the_parts_of_a_batch():
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    run = private(model, optimizer=inner)
    schedule = torch.optim.lr_scheduler.StepLR(inner, 30)  # which sets the rate that there is
    run.batches.give(3, complete=False)
    run.loss(model(X[:3]), Y[:3]).backward()
    run.optimizer.step()
    with pytest.raises(ConfigurationError, match="number of parts"):
        schedule.step()


@pytest.mark.parametrize("change", ["momentum", "rate", "state"])
def test_what_the_optimizer_keeps_does_not_change_between_the_parts_of_a_batch(change):
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9, foreach=False)
    run = private(model, optimizer=inner)
    run.backward(X, Y)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.batches.give(3, complete=False)
    run.loss(model(X[:3]), Y[:3]).backward()
    run.optimizer.step()
    if change == "momentum":
        inner.state[model[1].weight]["momentum_buffer"].mul_(0.5)
    elif change == "rate":
        inner.param_groups[0]["lr"].mul_(0.5)
    else:
        inner.load_state_dict(copy.deepcopy(inner.state_dict()))
    run.batches.give(3, part=2)
    run.loss(model(X[:3]), Y[:3]).backward()
    with pytest.raises(ConfigurationError, match="between the parts"):
        run.optimizer.step()
    assert len(run.charged) == 1


def test_a_gradient_that_is_put_back_between_the_parts_of_a_batch_is_refused():
    model = plain()
    run = private(model)
    run.batches.give(3, complete=False)
    run.loss(model(X[:3]), Y[:3]).backward()
    old = {p: p.grad for p in model.parameters()}
    run.optimizer.step()
    for p, g in old.items():
        p.grad = g
    run.loss(model(X[:3]), Y[:3]).backward()
    run.batches.give(3, part=2)
    with pytest.raises(ConfigurationError, match="backward pass"):
        run.optimizer.step()
    assert not run.charged


def test_a_gradient_that_is_asked_for_by_itself_is_no_backward_pass():
    model = plain()
    run = private(model)
    run.backward(X, Y)
    torch.autograd.grad(model[1].weight.square().sum(), model.get_parameter("1.weight"))
    run.optimizer.step()
    assert len(run.charged) == 1


@pytest.mark.parametrize("name", ["max_physical_batch_size", "dataset", "collate_fn"])
def test_what_a_loader_draws_is_fixed(name):
    loader = PoissonLoader(examples(40), sample_rate=0.5)
    with pytest.raises(ConfigurationError, match=f"PoissonLoader.{name}"):
        setattr(loader, name, None)


def trainer(model, **arguments):
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "train_dataset": examples(40), **arguments}
    return DPLipTrainer(
        model, loss=CrossEntropy(), batch_size=10, epochs=2, noise_multiplier=1.0, progress=False, **given
    )


def test_a_schedule_that_is_too_short_is_refused_before_anything_is_spent():
    model = plain()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps, good in ((2, False), (8, True)):
        schedule = torch.optim.lr_scheduler.OneCycleLR(inner, max_lr=0.3, total_steps=steps)
        if good:
            trainer(model, optimizer=inner, scheduler=schedule).fit()
        else:
            with pytest.raises(ConfigurationError, match=r"fails after step 3 of the 8|fails after step 2 of the 8"):
                trainer(model, optimizer=inner, scheduler=schedule)


def test_steps_by_hand_are_on_the_ledger(tmp_path):
    run = trainer(plain(), output_dir=tmp_path)
    for x, y in run.loader:
        run.optimizer.zero_grad()
        run.loss(run.model(x), y).backward()
        run.optimizer.step()
    assert len(Ledger.read(tmp_path / "ledger.jsonl").events) == 4
    run.fit()
    record = Ledger.read(tmp_path / "ledger.jsonl")
    assert len(record.events) == 8 and record.epsilon(1e-5) == run.get_epsilon(1e-5)


def test_the_gradients_of_tied_weights_and_of_parts_are_followed():
    model, shape = built("tied")
    run = private(model, input_shape=shape)
    run.batches.give(len(X))
    sum(run.loss(model(x), y) for x, y in ((X[:9], Y[:9]), (X[9:], Y[9:]))).backward()
    run.optimizer.step()
    assert len(run.charged) == 1 and isinstance(model, nn.Module)
