"""Checkpoints: the state of a run in one file of tensors and JSON; reading it executes nothing.

The file is in the safetensors format. Its tensors are those of the state; its metadata are a JSON text that says how
they are nested, which run and which line of its ledger they belong to, and a digest of it all. The digest is a
checksum and not a signature: it shows damage and slips, not a forger who recomputes it.

No state of a random generator is in it: after a resume, sampling and noise are drawn afresh, so that no draw is
ever used for two different data, and whoever gets hold of the file cannot take the noise away.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dplip.errors import CheckpointError
from dplip.runtime.files import write_whole

_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        run: the run's id, as in its ledger.
        steps: the steps on the ledger.
        chain: the ledger's checksum after those steps.
        accountant: the accountant's state.
        sampler: the public constants of the sampling, which needs no position, as batches are drawn independently.
        model, optimizer: the states of the model and of the optimizer, without its parameter groups.
        average: the state of the moving average of the weights; None: there is none.
        seconds: training time so far.
        history: public figures of the steps so far, for the report.
    """

    run: str
    steps: int
    chain: str
    accountant: dict[str, Any]
    sampler: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[Any, Any]
    average: dict[str, Any] | None
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """Write the file whole: a crash leaves the previous checkpoint in its place.

        Raises:
            CheckpointError: the file cannot be written, or a state holds something that is not data.
        """
        tensors: dict[str, Tensor] = {}
        state = {f.name: _pack(getattr(self, f.name), tensors, f.name) for f in fields(self)}
        text = json.dumps({"checkpoint": "dplip", "version": _VERSION, "state": state}, allow_nan=False)
        write_state(Path(path), save(tensors, {"dplip": text, "digest": _digest(text, tensors)}))

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read and verify a checkpoint; nothing in the file is executed.

        Raises:
            CheckpointError: it is missing, cut off, changed, or no checkpoint of this version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as wrong:
            raise CheckpointError(
                f"{path}: no checkpoint can be read there ({wrong}). Remove it to begin again from the first weights; "
                "what the ledger shows as spent stays spent."
            ) from None
        try:
            text = metadata["dplip"]
            if metadata["digest"] != _digest(text, tensors):
                raise ValueError("its checksum does not match")
            content = json.loads(text)
            if (content["checkpoint"], content["version"]) != ("dplip", _VERSION):
                raise ValueError(f"this is not a checkpoint of version {_VERSION}")
            stored = {"history": [], **content["state"]}  # earlier checkpoints have no history
            state = {f.name: _unpack(stored[f.name], tensors) for f in fields(cls)}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as wrong:
            raise CheckpointError(
                f"{path}: not as it was written ({wrong!r}). Restore the file from a copy, or remove it to begin again "
                "from the first weights; what the ledger shows as spent stays spent."
            ) from None
        return cls(**state)


def write_state(path: Path, content: bytes) -> None:
    """Write a file of a run's state whole.

    Raises:
        CheckpointError: it cannot be written; the old file is as it was.
    """
    try:
        write_whole(path, content)
    except OSError as wrong:
        raise CheckpointError(
            f"{path}: cannot be written ({wrong}). Make room or name another folder; the steps on the ledger stand."
        ) from None


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The value in JSON's types, its tensors moved to ``tensors``."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor):
        key = f"{len(tensors)}.{name}"
        tensors[key] = value.detach().to("cpu").contiguous().clone()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"items": [[k, _pack(v, tensors, f"{name}.{k}")] for k, v in value.items() if _is_key(k, name)]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, tensors, name) for v in value]}
    if isinstance(value, list):
        return [_pack(v, tensors, name) for v in value]
    raise CheckpointError(
        f"{name}: it holds a {type(value).__name__}, and a checkpoint holds data alone: numbers, strings, tensors, "
        "lists, mappings. Keep it out of the state_dict."
    )


def _is_key(key: object, name: str) -> bool:
    if not isinstance(key, str | int):
        raise CheckpointError(f"{name}: the key {key!r} is neither a string nor a whole number. Name it by one.")
    return True


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _unpack(v, tensors) for key, v in content}
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown kind {kind!r}")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
