"""Data sets read from their published files, and the checks a data set passes before anything trains on it.

Images are float32 in [0, 1], the scale of the raw pixels (so of a certified radius too), of shape (N, C, H,
W); labels are int64. Nothing is downloaded, and nothing in a file is executed.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dplip.errors import ConfigurationError
from dplip.formats import Bytes, Split, read_cifar_batch, read_idx_split


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
        data_dir: folder that holds the published files, directly or in a folder of the data set's name; by
            default the environment variable ``DPLIP_DATA``. Not used for digits.

    Raises:
        ConfigurationError: the name is unknown; a file is missing (the message says what to download, and
            where to put it); a file is damaged, or is not what its name says.

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
        raise ConfigurationError(f"name={name!r} is not a known data set{hint}: choose one of {', '.join(names)}")
    source = _SOURCES[name]
    train, test = source.read(_locate(name, data_dir))
    return Data(name, _tensors(*train), _tensors(*test), tuple(train[0].shape[1:]), 10)


def check_dataset(
    dataset: Dataset[Any],
    *,
    what: str,
    num_classes: int | None = None,
    finite: bool = False,
    finite_targets: bool = False,
) -> None:
    """Refuse a data set that no sound run can be made from.

    Args:
        dataset: map-style data set of (input, target) pairs.
        what: the argument's name, for the message.
        num_classes: if given, every target must be one whole number in [0, num_classes).
        finite: if true, inputs and targets must hold neither NaN nor infinity.
        finite_targets: the same of targets alone.

    Raises:
        ConfigurationError: naming the first example at fault.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise ConfigurationError(f"{what}={kind}: pass its data set, loader.dataset; batches are drawn here")
    try:
        size = len(cast(Sized, dataset))
    except (TypeError, NotImplementedError):
        raise ConfigurationError(
            f"{what}={kind} has no length, and sampling needs one: pass a map-style data set"
        ) from None
    if size == 0:
        raise ConfigurationError(f"{what}={kind} is empty (length 0): pass at least one example")
    # A subclass may transform its items, so its tensors are not what the model will see.
    chunks = _tensor_chunks if type(dataset) is TensorDataset else _item_chunks
    for start, inputs, targets in chunks(dataset, size, what):
        if finite:
            _require(_is_finite(inputs), inputs, f"{what} input", start, "finite numbers")
        if finite or finite_targets:
            _require(_is_finite(targets), targets, f"{what} target", start, "finite numbers")
        if num_classes is not None:
            wanted = f"one class, a whole number from 0 to {num_classes - 1}"
            _require(_is_label(targets, num_classes), targets, f"{what} label", start, wanted)


def holdout(dataset: TensorDataset, fraction: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Split a data set at random into a training part and a held-out part.

    Held-out examples are as private as the others: what is chosen by looking at them is not covered by the
    training run's epsilon.

    Args:
        dataset: what to split.
        fraction: the probability, for each example, of being held out.
        seed: with the example's own values, fixes its place. Equal examples go to one part.

    Raises:
        ConfigurationError: fraction outside (0, 1), a negative seed, or an empty part.

    Guarantee:
        An example's part depends on nothing but that example and ``seed``: whichever one is added or removed,
        wherever it stands, one part gains or loses it and no other example moves. So neighbouring data sets have
        neighbouring parts. Hence no exact sizes: they are as if a coin were thrown for each (distinct) example.
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"fraction={fraction} is not between 0 and 1 (both excluded): pass for example 0.1")
    if seed < 0:
        raise ConfigurationError(f"seed={seed} is negative: pass 0 or more")
    held = torch.tensor([_coin(row, seed) < fraction for row in _rows(dataset)], dtype=torch.bool)
    parts = [TensorDataset(*(t[mask.to(t.device)] for t in dataset.tensors)) for mask in (~held, held)]
    if not all(len(part) for part in parts):
        raise ConfigurationError(
            f"fraction={fraction} of {len(dataset)} examples (seed={seed}) leaves one part empty: "
            "pass more examples, or a fraction nearer to one half"
        )
    return parts[0], parts[1]


def _rows(dataset: TensorDataset) -> Iterator[bytes]:
    """The bytes of each example."""
    parts = [t.detach().cpu().unsqueeze(-1).flatten(1).contiguous().view(torch.uint8).numpy() for t in dataset.tensors]
    for values in zip(*parts, strict=True):
        yield b"".join(value.tobytes() for value in values)


def _coin(row: bytes, seed: int) -> float:
    """A number in [0, 1) that looks random and is fixed by both."""
    return int.from_bytes(hashlib.blake2b(b"%d:%s" % (seed, row), digest_size=6).digest(), "big") / 2**48


def _tensor_chunks(dataset: Any, size: int, what: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    if len(dataset.tensors) != 2:
        raise ConfigurationError(
            f"{what} holds {len(dataset.tensors)} tensors, not two: pass TensorDataset(inputs, targets)"
        )
    step = 8192  # bounds the memory of the checks
    for start in range(0, size, step):
        yield start, dataset.tensors[0][start : start + step], dataset.tensors[1][start : start + step]


def _item_chunks(dataset: Any, size: int, what: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    shape: tuple[int, ...] | None = None
    for index in range(size):
        item = dataset[index]
        try:
            inputs, target = (torch.as_tensor(part)[None] for part in item)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"{what}[{index}] is a {type(item).__name__}, not a pair (input, target) of tensors or "
                f"numbers ({error}): convert it in the data set"
            ) from error
        if shape is not None and inputs.shape != shape:
            raise ConfigurationError(
                f"{what}[{index}] has shape {tuple(inputs.shape[1:])}, and {what}[0] {tuple(shape[1:])}: "
                "bring examples to one shape in the data set"
            )
        shape = inputs.shape
        yield index, inputs, target


def _is_finite(values: Tensor) -> Tensor:
    return torch.isfinite(values).unsqueeze(-1).flatten(1).all(1)


def _is_label(targets: Tensor, num_classes: int) -> Tensor:
    labels = targets.unsqueeze(-1).flatten(1)
    if labels.shape[1] != 1:
        return torch.zeros(len(labels), dtype=torch.bool)
    return ((labels >= 0) & (labels < num_classes) & (labels.long() == labels)).squeeze(1)


def _require(good: Tensor, values: Tensor, name: str, start: int, wanted: str) -> None:
    if not good.all():
        first = int(good.int().argmin())
        value = values[first]
        found = f"={value.item()}" if value.numel() == 1 else f" of shape {tuple(value.shape)}"
        raise ConfigurationError(f"{name} {start + first}{found} is not {wanted}: correct it or leave it out")


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
