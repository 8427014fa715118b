"""The weights of a finished run: a ``state_dict`` in the safetensors format, of which reading executes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dplip.errors import CheckpointError
from dplip.records.checkpoint import write_state

FILE = "model.safetensors"


def write_weights(folder: Path, state: Mapping[str, object]) -> str:
    """Write a ``state_dict`` whole, and return the SHA-256 of the file.

    Raises:
        CheckpointError: it holds something else than tensors, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name}: it is a {type(value).__name__}, and the weights of a run are tensors alone. Keep it "
                "out of the state_dict."
            )
        tensors[name] = value.detach().to("cpu").contiguous().clone()  # tied weights stand twice
    content = save(tensors)
    write_state(folder / FILE, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(folder: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The weights in the folder of a run; nothing in the file is executed.

    Args:
        expected: the SHA-256 that the file must have; None: any.

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that was expected.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as wrong:
        raise CheckpointError(
            f"{path}: no weights can be read there ({type(wrong).__name__}). Restore the file, without spending "
            "anything, by dplip train --resume with the flags of the run."
        ) from None
    if expected not in (None, hashlib.sha256(content).hexdigest()):
        raise CheckpointError(
            f"{path}: these are not the weights that report.json beside it is about: their SHA-256 differs. Put the "
            "files of one run together."
        )
    return tensors
