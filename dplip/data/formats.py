"""Readers of image files in their published formats: IDX (MNIST and its kin) and the pickles of CIFAR-10.

Reading any file gives checked arrays or a ``ConfigurationError`` that names the file and the mismatch. Reading a pickle
runs nothing that it names.
"""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from dplip.errors import ConfigurationError

Bytes = npt.NDArray[np.uint8]
Split = tuple[Bytes, Bytes]  # images (N, C, H, W), labels (N,)


def read_idx_split(images_path: Path, labels_path: Path) -> Split:
    """Read images of 28 x 28 and their labels from two IDX files, plain or gzipped.

    Raises:
        ConfigurationError: a file is unreadable, damaged, of another format, or disagrees with the other.
    """
    images, labels = _read_idx(images_path, (28, 28)), _read_idx(labels_path, ())
    return _checked(labels_path, images[:, None], labels)


def read_cifar_batch(path: Path) -> Split:
    """Read one batch of CIFAR-10's python version: a pickled dict of ``data`` (N, 3072) uint8 and ``labels``.

    Raises:
        ConfigurationError: the file is unreadable, damaged, or names what such a batch does not need.
    """
    raw = _read_bytes(path)
    try:
        batch = _ArrayUnpickler(io.BytesIO(raw), encoding="bytes").load()
        images, labels = batch[b"data"].values, batch[b"labels"]
    except Exception as error:  # a damaged pickle may raise anything
        _damaged(path, f"is not a CIFAR-10 batch ({type(error).__name__}: {error})", error)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
        _damaged(path, f"images are of shape {getattr(images, 'shape', None)}, not (N, 3072)")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 256 for label in labels):
        _damaged(path, "labels are not a list of whole numbers from 0 to 9")
    return _checked(path, images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.uint8))


def _damaged(path: Path, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigurationError(f"file {path}: {problem}: download the published file again") from cause


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        _damaged(path, f"cannot be read ({type(error).__name__}: {error})", error)


def _read_idx(path: Path, shape: tuple[int, ...]) -> Bytes:
    """An IDX file of unsigned bytes: 0, 0, 8, number of dimensions; sizes as big-endian 32 bits; values."""
    raw = _read_bytes(path)
    header = 8 + 4 * len(shape)
    magic = bytes((0, 0, 8, 1 + len(shape)))
    if raw[:4] != magic:
        _damaged(path, f"magic number is {raw[:4].hex() or 'absent'}, not {magic.hex()}")
    if len(raw) < header:
        _damaged(path, f"{len(raw)} bytes are fewer than the header's {header}")
    count, *sizes = struct.unpack(f">{1 + len(shape)}I", raw[4:header])
    if tuple(sizes) != shape:
        _damaged(path, f"images are {tuple(sizes)}, not {shape}")
    if len(raw) != header + count * math.prod(shape):
        _damaged(path, f"header declares {count} of shape {shape}, but {len(raw) - header} bytes follow it")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(count, *shape)


def _checked(path: Path, images: Bytes, labels: Bytes) -> Split:
    if len(images) != len(labels) or not len(labels):
        _damaged(path, f"{len(labels)} labels for {len(images)} images")
    if labels.max() >= 10:
        _damaged(path, f"label {labels.max()} of example {labels.argmax()} is not in 0 to 9")
    return images, labels


class _PickledArray:
    """Stands in for numpy's array while a pickle is read: keeps plain bytes, runs nothing."""

    values: Bytes | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _PickledUint8) or fortran_order or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array of other than plain uint8")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape)


class _PickledUint8:
    """Stands in for numpy's dtype, and refuses any other than uint8."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError("it holds values of other than uint8")

    def __setstate__(self, state: object) -> None:
        pass


class _ArrayUnpickler(pickle._Unpickler):
    """Reads dicts, lists, strings, numbers and uint8 arrays; any other name is refused.

    The Python implementation, since the C one allocates as much memory as a damaged memo index tells it to.
    """

    _allowed: dict[tuple[str, str], type] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledUint8,
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return self._allowed[module, name]
