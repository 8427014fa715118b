"""Training is the same on every device; what needs a GPU is skipped without one."""

import pytest
import torch
from torch import nn

import dplip

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trainer(device, seed=0, **arguments):
    torch.manual_seed(seed)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    layers = [nn.Linear(6, 8), dplip.nn.GroupSort(2), nn.Linear(8, 3)]
    model = nn.Sequential(dplip.nn.BallProjection(2.0), *dplip.nn.bound_gradients(nn.Sequential(*layers), 0.5))
    data = torch.utils.data.TensorDataset(x, y)
    return dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(normalize=True),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_dataset=data,
        eval_dataset=data,
        batch_size=32,
        epochs=2,
        device=device,
        progress=False,
        **{"noise_multiplier": 1.0, "seed": seed, **arguments},
    )


def places(run):
    return {p.device.type for p in run.model.parameters()}


def test_the_device_is_chosen_found_or_refused():
    assert places(trainer("cpu")) == {"cpu"} == places(trainer(torch.device("cpu")))
    assert places(trainer("auto")) == ({"cuda"} if torch.cuda.is_available() else {"cpu"})
    with pytest.raises(dplip.ConfigurationError, match="device='nowhere'"):
        trainer("nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(dplip.ConfigurationError, match="device='cuda'"):
        trainer("cuda")


def test_an_explicit_device_trains():
    run = trainer("cpu").fit()
    assert run.get_epsilon() > 0 and all(p.isfinite().all() for p in run.model.parameters())


@CUDA
def test_a_run_on_cuda_is_bounded_counted_and_certified_as_on_cpu():
    runs = {device: trainer(device) for device in ("cpu", "cuda")}
    assert runs["cpu"].plan().sensitivities == runs["cuda"].plan().sensitivities
    for run in runs.values():
        run.fit()
    assert places(runs["cuda"]) == {"cuda"}
    assert runs["cpu"].get_epsilon() == runs["cuda"].get_epsilon()
    assert len(runs["cuda"].certified_accuracy([0.0, 0.1])) == 2
    assert runs["cuda"].evaluate()["accuracy"] <= 1


@CUDA
def test_without_noise_both_devices_end_at_the_same_weights():
    ends = [
        torch.cat([p.detach().cpu().flatten() for p in trainer(d, noise_multiplier=0.0).fit().model.parameters()])
        for d in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


@CUDA
def test_noise_on_cuda_has_the_deviation_that_was_asked_for():
    noise = dplip.noise.GaussianNoise()
    draws = noise.add_(torch.zeros(1 << 20, device="cuda"), 2.0)
    assert abs(float(draws.std()) / 2 - 1) < 0.01 and abs(float(draws.mean())) < 0.02
