"""TF32 and bfloat16 in products of float32 are not covered by the slack for rounding: switched off, or refused."""

from typing import Any

import pytest
import torch
from helpers.models import orthogonal
from helpers.runs import examples, private
from torch import nn

import dplip
from dplip.errors import ConfigurationError
from dplip.runtime.precision import _SETTINGS, _backend, full_precision, require_full_precision

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = [name for names in _SETTINGS.values() for name in names]


BACKENDS: Any = torch.backends


def present():
    return [_backend(name).fp32_precision for name in NAMES]


@pytest.fixture(autouse=True)
def restored():
    """Torch's settings after each test as before it."""
    before = present(), BACKENDS.fp32_precision
    yield
    BACKENDS.fp32_precision = before[1]
    for name, setting in zip(NAMES, before[0], strict=True):
        _backend(name).fp32_precision = setting
    assert (present(), BACKENDS.fp32_precision) == before


class On(nn.Module):
    """What the check sees of a model on a device that this machine may lack."""

    def __init__(self, kind, dtype=torch.float32):
        super().__init__()
        self.found = [type("Parameter", (), {"device": torch.device(kind), "dtype": dtype})]

    def parameters(self, recurse=True):
        return iter(self.found)


def high():
    torch.set_float32_matmul_precision("high")


def medium():
    torch.set_float32_matmul_precision("medium")


def old():
    torch.backends.cuda.matmul.allow_tf32 = True


def everything():
    BACKENDS.fp32_precision = "tf32"


def matmul():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def convolutions():
    torch.backends.cudnn.allow_tf32 = True


def full():
    """What the error says to do."""
    for name in NAMES:
        _backend(name).fp32_precision = "ieee"


@pytest.mark.parametrize("allow", [high, medium, old, everything, matmul, convolutions])
def test_whatever_allows_fewer_digits_on_a_gpu_is_refused(allow):
    for name in NAMES:
        _backend(name).fp32_precision = "none"
    require_full_precision(On("cuda"))
    allow()
    with pytest.raises(ConfigurationError, match=r"(\S+)\.fp32_precision='tf32'.*Set \1\.fp32_precision = 'ieee'"):
        require_full_precision(On("cuda"))
    require_full_precision(On("cuda", torch.float64))
    require_full_precision(On("meta"))
    with full_precision():
        require_full_precision(On("cuda"))
    full()
    require_full_precision(On("cuda"))


@pytest.mark.parametrize("allow", [medium, everything])
def test_a_step_in_fewer_digits_is_refused_and_nothing_is_spent(allow):
    run = private(orthogonal())
    data = examples(20)
    run.backward(*data.tensors)
    before = [p.detach().clone() for p in run.model.parameters()]
    allow()
    with pytest.raises(ConfigurationError, match=r"mkldnn.matmul.fp32_precision='(bf16|tf32)'"):
        run.optimizer.step()
    assert run.charged == [] and all(map(torch.equal, run.model.parameters(), before))
    with full_precision():
        run.optimizer.step()
    assert len(run.charged) == 1


def test_a_gradient_in_fewer_digits_is_refused_though_the_setting_is_back_at_the_step():
    run = private(orthogonal())
    medium()
    run.backward(*examples(20).tensors)
    with full_precision(), pytest.raises(ConfigurationError, match="fp32_precision='bf16'"):
        run.optimizer.step()
    assert run.charged == []


def test_settings_are_as_before_after_the_block_even_if_it_fails():
    medium()
    before = present()
    with pytest.raises(KeyError), full_precision():
        assert set(present()) <= {"ieee", "none"}
        raise KeyError
    assert present() == before and torch.get_float32_matmul_precision() == "medium"


class Asking(torch.utils.data.Dataset):
    """Data that note in how many digits products are while they are read."""

    def __init__(self):
        self.seen = []

    def __len__(self):
        return 64

    def __getitem__(self, i):
        self.seen.append(present())
        return torch.full((6,), i / 64), i % 4


def test_training_and_certificates_switch_it_off_for_themselves():
    everything()
    model, data, held_out = orthogonal(), Asking(), Asking()
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=data,
        eval_dataset=held_out,
        batch_size=32,
        noise_multiplier=1.0,
        epochs=1,
        progress=False,
    )
    data.seen.clear()
    held_out.seen.clear()
    trainer.fit().certified_accuracy()
    for seen in (data.seen, held_out.seen):
        assert seen and all(setting == ["ieee"] * len(NAMES) for setting in seen)
    assert present() == ["tf32"] * len(NAMES)


@CUDA
@pytest.mark.parametrize("allow", [high, everything])
def test_training_convolutions_on_cuda_needs_no_setting(allow):
    allow()
    torch.manual_seed(0)
    model = nn.Sequential(dplip.nn.BallProjection(1.0), nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 3))
    data = torch.utils.data.TensorDataset(torch.randn(64, 3, 8, 8), torch.randint(3, (64,)))
    trainer = dplip.DPLipTrainer(
        model,
        loss=dplip.losses.CrossEntropy(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataset=data,
        batch_size=32,
        noise_multiplier=1.0,
        progress=False,
        epochs=1,
        device="cuda",
    )
    before = present()
    trainer.fit()
    assert trainer.accountant.num_steps == 2 and present() == before
