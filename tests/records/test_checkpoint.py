"""The file of a checkpoint: read as written, and whatever was changed in it is noticed."""

import math
import pickle

import pytest
import torch

from dplip.errors import CheckpointError
from dplip.records import Checkpoint

STATE = {"scalar": torch.tensor(3.0), "matrix": torch.randn(3, 4), "flags": torch.tensor([True, False])}


def checkpoint(**change) -> Checkpoint:
    given = {
        **{"run": "r", "steps": 2, "chain": "c", "accountant": {"history": [(1.0, 0.1, 2)], "mechanism": "rdp"}},
        **{"sampler": {}, "model": STATE, "optimizer": {0: {"step": 1, "nothing": None}}, "average": None},
        **{"seconds": math.inf},
        **change,
    }
    return Checkpoint(**given)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "c.safetensors"
    nested = {0: {"a": [1, 2.5, (True, None, "x")], "b": {"deep": torch.zeros(2, dtype=torch.int64)}}, "lr": -math.inf}
    checkpoint(optimizer=nested).write(path)
    back = Checkpoint.read(path)
    assert back.optimizer[0]["a"] == [1, 2.5, (True, None, "x")] and back.optimizer["lr"] == -math.inf
    assert torch.equal(back.optimizer[0]["b"]["deep"], nested[0]["b"]["deep"])
    assert back.seconds == math.inf and back.accountant["history"] == [(1.0, 0.1, 2)]
    assert all(torch.equal(back.model[k], v) and back.model[k].dtype == v.dtype for k, v in STATE.items())


def test_bfloat16_and_views_and_shared_tensors_come_back(tmp_path):
    path = tmp_path / "c.safetensors"
    w = torch.randn(4, 6)
    state = {"half": w.bfloat16(), "view": w.T[::2], "same": w, "again": w, "empty": torch.zeros(0, 3)}
    checkpoint(model=state).write(path)
    assert all(torch.equal(v, state[k]) for k, v in Checkpoint.read(path).model.items())


def test_every_changed_byte_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    content = path.read_bytes()
    for k in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[k] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Checkpoint.read(path)


def test_a_checkpoint_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    content = path.read_bytes()
    for cut in range(0, len(content), 11):
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError):
            Checkpoint.read(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        Checkpoint.read(path)


def test_a_pickle_is_not_read(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError):
        Checkpoint.read(path)
    assert not (tmp_path / "harm").exists()


def test_what_is_not_data_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.hook: it holds a builtin_function_or_method"):
        checkpoint(model={"hook": print}).write(tmp_path / "c")
    with pytest.raises(CheckpointError, match="key"):
        checkpoint(model={(1, 2): 3}).write(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    checkpoint().write(path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("dplip.runtime.files.os.fsync", full)
    with pytest.raises(CheckpointError, match=r"no space left.*the steps on the ledger stand"):
        checkpoint(steps=3).write(path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == [path.name]
