"""Synthetic images: the same for the same arguments, and theirs alone."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dplip.data.dead_leaves import dead_leaves


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_the_same_for_the_same_arguments_and_others_for_another_seed(channels):
    images = dead_leaves(6, 12, channels)
    assert images.shape == (6, channels, 12, 12) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1 and (images.flatten(1).std(1) > 0.01).all()
    assert torch.equal(images, dead_leaves(6, 12, channels))
    assert not torch.equal(images, dead_leaves(6, 12, channels, seed=1))
    assert (images[:, 0] != images[:, -1]).any() == (channels > 1)  # colours


def test_images_owe_nothing_to_the_state_of_a_generator():
    program = (
        "from dplip.data.dead_leaves import dead_leaves; import torch, numpy; "
        "torch.manual_seed(5); numpy.random.seed(5)"
    )
    program += "; print(repr(float(dead_leaves(6, 12).double().sum())))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(dead_leaves(6, 12).double().sum()), rel=1e-6)


def test_the_picture_of_the_images_is_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    monkeypatch.setattr(sys, "argv", ["", "--out", str(tmp_path / "leaves.png")])
    importlib.import_module("dead_leaves").main()
    assert (tmp_path / "leaves.png").read_bytes()[1:4] == b"PNG"
