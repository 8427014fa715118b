"""Data sets of images, read from their published files.

Images are float32 in [0, 1], the scale of the raw pixels (so of a certified radius too), of shape (N, C, H, W); labels
are int64. Nothing is downloaded, and nothing in a file is executed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from dplip.data.formats import Bytes, Split, read_cifar_batch, read_idx_split
from dplip.errors import ConfigurationError


@dataclass(frozen=True)
class Data:
    """A data set for classification: images as raw pixels in [0, 1], labels in [0, num_classes)."""

    name: str
    train: TensorDataset
    test: TensorDataset
    input_shape: tuple[int, ...]
    num_classes: int


def load(name: str = "digits", data_dir: str | Path | None = None) -> Data:
    """Read a data set by name.

    Args:
        name: ``digits`` (ships with scikit-learn), ``mnist``, ``fashion-mnist`` or ``cifar10``.
        data_dir: folder that holds the published files, directly or in a folder of the data set's name; by default the
            environment variable ``DPLIP_DATA``. Not used for digits.

    Raises:
        ConfigurationError: the name is unknown; a file is missing (the message says what to download, and where to put
            it), is damaged, or does not hold what its name says.

    >>> data = load("digits")
    >>> data.input_shape, data.num_classes, len(data.train), len(data.test)
    ((1, 8, 8), 10, 1437, 360)
    """
    if name == "digits":
        return _digits()
    if name not in _SOURCES:
        names = ["digits", *_SOURCES]
        nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ConfigurationError(
            f"name={name!r} is not a known data set{hint}: choose one of {', '.join(names)}. (Images of your own: give "
            "dplip.DPLipTrainer a data set of (image, class) pairs, such as torchvision's ImageFolder; tables: a .csv "
            "or .parquet file.)"
        )
    source = _SOURCES[name]
    train, test = source.read(_locate(name, data_dir))
    return Data(name, _tensors(*train), _tensors(*test), tuple(train[0].shape[1:]), 10)


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images, labels = (
        torch.from_numpy(digits.images / 16).float().unsqueeze(1),
        torch.from_numpy(digits.target).long(),
    )
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=labels.numpy(), random_state=0)
    parts = [TensorDataset(images[part], labels[part]) for part in (train, test)]
    return Data("digits", parts[0], parts[1], (1, 8, 8), 10)


def _tensors(images: Bytes, labels: Bytes) -> TensorDataset:
    return TensorDataset(
        torch.from_numpy(images.astype(np.float32)).div_(255), torch.from_numpy(labels.astype(np.int64))
    )


def _locate(name: str, data_dir: str | Path | None) -> list[Path]:
    """The data set's files, in the order of its source's list."""
    source = _SOURCES[name]
    remedy = (
        f"download {source.download}, put the files in DIR/{source.folders[0]}, and name DIR by "
        "data_dir=DIR, --data-dir DIR or the environment variable DPLIP_DATA"
    )
    given = data_dir if data_dir is not None else os.environ.get("DPLIP_DATA") or None
    if given is None:
        raise ConfigurationError(
            f"data_dir=None and DPLIP_DATA is not set, so {name!r} cannot be read from anywhere: {remedy}"
        )
    root = Path(os.path.expanduser(given))
    folders = [root / folder for folder in source.folders]
    # MNIST and Fashion-MNIST share their file names: a folder of the one is not searched for the other.
    if not any(root.name in other.folders for key, other in _SOURCES.items() if key != name):
        folders.append(root)
    found = [[_either(folder / file) for file in source.files] for folder in folders]
    most = max(found, key=lambda paths: sum(path is not None for path in paths))
    missing = [file for file, path in zip(source.files, most, strict=True) if path is None]
    if missing:
        where = folders[found.index(most)]
        raise ConfigurationError(f"data_dir={str(root)!r}: {where} has no {', '.join(missing)}: {remedy}")
    return [path for path in most if path is not None]


def _either(path: Path) -> Path | None:
    """The file, or its compressed form."""
    return next((form for form in (path, path.with_name(path.name + ".gz")) if form.is_file()), None)


def _read_mnist(paths: list[Path]) -> tuple[Split, Split]:
    return read_idx_split(paths[0], paths[1]), read_idx_split(paths[2], paths[3])


def _read_cifar10(paths: list[Path]) -> tuple[Split, Split]:
    *train, test = map(read_cifar_batch, paths)
    images, labels = zip(*train, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


@dataclass(frozen=True)
class _Source:
    """Where a data set's files are looked for, where they come from, and how they are read."""

    folders: tuple[str, ...]
    files: tuple[str, ...]
    download: str
    read: Callable[[list[Path]], tuple[Split, Split]]


_IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_IDX_FILES = ", ".join(f"{file}.gz" for file in _IDX)
_MNIST = f"{_IDX_FILES} of MNIST (home page: The MNIST database of handwritten digits)"
_FASHION = f"{_IDX_FILES} of Fashion-MNIST (home page: zalandoresearch/fashion-mnist)"
_BATCHES = (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
_CIFAR10 = (
    "and unpack cifar-10-python.tar.gz (data_batch_1 to data_batch_5, test_batch) of CIFAR-10, python "
    "version (home page: The CIFAR-10 dataset)"
)
_SOURCES = {
    "mnist": _Source(("mnist",), _IDX, _MNIST, _read_mnist),
    "fashion-mnist": _Source(("fashion-mnist",), _IDX, _FASHION, _read_mnist),
    "cifar10": _Source(("cifar-10-batches-py", "cifar10"), _BATCHES, _CIFAR10, _read_cifar10),
}
