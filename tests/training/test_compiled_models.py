"""torch.compile changes how a model runs and not what is bounded: traces, gradients, bounds and the monitor stay."""

import copy
import itertools

import pytest
import torch
from torch import nn

import dplip
from dplip.sampling import PoissonLoader


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network(radius=0.5):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), dplip.nn.GroupSort(2), nn.Linear(8, 3)]
    return nn.Sequential(dplip.nn.BallProjection(2.0), *dplip.nn.bound_gradients(nn.Sequential(*layers), radius))


def gradients(model, x, y):
    model.zero_grad()
    dplip.losses.CrossEntropy(normalize=True)(model(x), y).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def data(examples=64):
    torch.manual_seed(1)
    return torch.randn(examples, 6) * 3, torch.randint(3, (examples,))


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request):
    if request.param == "inductor":
        from torch._inductor import cpp_builder

        try:
            cpp_builder.get_cpp_compiler()
        except Exception as missing:
            pytest.skip(f"inductor has no compiler: {missing}")
    return request.param


def test_a_compiled_model_has_the_same_gradient(backend):
    model = network()
    compiled = copy.deepcopy(model)
    compiled.compile(backend=backend)
    x, y = data()
    torch.testing.assert_close(gradients(compiled, x, y), gradients(model, x, y), rtol=1e-4, atol=1e-6)


def test_a_compiled_layer_keeps_its_radius(backend):
    """Each example's gradient, whatever the input and cotangent, by the difference that it makes to the sum."""
    layer = dplip.nn.BoundedLinear(6, 4, radius=0.25)
    layer.compile(backend=backend, dynamic=False)
    torch.manual_seed(2)
    for poison, on_input in itertools.product([1.0, 1e20, 1e38, float("inf"), float("nan")], (True, False)):
        x, v = torch.randn(2, 6), torch.randn(2, 4)
        (x if on_input else v)[0] *= poison
        sums = []
        for rows in (v, torch.cat([torch.zeros(1, 4), v[1:]])):
            layer.zero_grad()
            layer(x).backward(rows)
            sums.append((layer.weight.grad.clone(), layer.bias.grad.clone()))
        for with_it, without in zip(*sums, strict=True):
            assert torch.linalg.vector_norm(with_it - without) <= 0.25 * (1 + 1e-5)


def test_a_compiled_model_trains_privately_and_is_certified(backend):
    model = network()
    model.compile(backend=backend)
    x, y = data()
    loss = dplip.losses.CrossEntropy(normalize=True)
    trainer = dplip.DPLipTrainer(
        model,
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=torch.utils.data.TensorDataset(x, y),
        batch_size=64,
        epochs=3,
        noise_multiplier=1.0,
        progress=False,
        seed=0,
    )
    before = trainer.plan().sensitivities
    trainer.fit()
    assert trainer.optimizer.sensitivities() == before == dplip_optimizer(network()).sensitivities()
    assert dplip.certify(model, x).shape == (64,)


def dplip_optimizer(model):
    x, y = data()
    return dplip.DPLipOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model=model,
        loss=dplip.losses.CrossEntropy(normalize=True),
        input_shape=(6,),
        noise_multiplier=1.0,
        batches=PoissonLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, seed=0),
    )


def test_the_monitor_still_sees_a_part_that_is_called_by_itself():
    model = network()
    optimizer = dplip_optimizer(model)
    model.compile(backend="aot_eager")
    for x, y in optimizer.batches:
        optimizer.zero_grad()
        optimizer.loss(model(x), y).backward()
        optimizer.step()  # the whole model: fine
    for x, y in optimizer.batches:
        optimizer.zero_grad()
        optimizer.loss(model(x), y).backward()
        model[1](x).sum().backward()
        with pytest.raises(dplip.ConfigurationError, match="a part of the model"):
            optimizer.step()


def test_a_foreign_gradient_into_a_compiled_model_is_refused():
    model = network()
    optimizer = dplip_optimizer(model)
    model.compile(backend="aot_eager")
    for x, y in optimizer.batches:
        optimizer.zero_grad()
        z = model(x)
        (optimizer.loss(z, y) + z.sum()).backward()
        with pytest.raises(dplip.ConfigurationError, match="something"):
            optimizer.step()
