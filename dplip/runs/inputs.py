"""Inputs for a finished run, read from files: tables, arrays of numpy, and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dplip.data import encode_features
from dplip.data.frames import SUFFIXES, column_texts, read_frame
from dplip.data.tables import as_number
from dplip.errors import ConfigurationError, first_line
from dplip.runs.loaded_run import LoadedRun

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")


def read_inputs(path: str | Path, run: LoadedRun) -> tuple[list[str], Tensor]:
    """The inputs in a file, or in a folder of images, with a name for each: its file's, or the number of its row.

    Args:
        path: a CSV or Parquet file, by the schema of the run if it has one, else with one column for each number of an
            input; a ``.npy`` file of floating-point numbers (batch, ...); an image, or a folder of images, whose pixels
            become numbers from 0 to 1.

    Raises:
        ConfigurationError: the file is missing, damaged, of another kind, or does not fit the run.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigurationError(f"input={str(path)!r}: there is no such file or folder.")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not files:
            raise ConfigurationError(f"input={str(path)!r}: no image is in this folder ({', '.join(IMAGES)}).")
        return _images(files, run)
    kind = path.suffix.lower()
    if kind in IMAGES:
        return _images([path], run)
    if kind == ".npy":
        return _numbered(_array(path))
    if kind in SUFFIXES:
        return _numbered(_table(path, run))
    known = ", ".join((*SUFFIXES, ".npy", *IMAGES))
    raise ConfigurationError(f"input={str(path)!r}: it is none of {known}, and no folder of images. Convert it to one.")


def _numbered(x: Tensor) -> tuple[list[str], Tensor]:
    return [str(row) for row in range(1, len(x) + 1)], x


def _array(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array))
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(
            f"input={str(path)!r}: no array of numbers can be read there ({first_line(wrong)})."
        ) from None


def _table(path: Path, run: LoadedRun) -> Tensor:
    frame = read_frame(path)
    if run.schema is not None:
        return encode_features(frame, run.schema, str(path))
    shape = run.input_shape
    size, found = int(np.prod(shape)), len(frame.columns)
    if found != size:
        raise ConfigurationError(
            f"input={str(path)!r}: it has {found} columns, and an input has {size} numbers: give a column for each, in "
            "their order, under a line of names."
        )
    columns = [column_texts(frame, name, str(path)) for name in frame.columns]
    numbers = [[None if text is None else as_number(text) for text in column] for column in columns]
    for name, column in zip(frame.columns, numbers, strict=True):
        if None in column:
            raise ConfigurationError(
                f"input={str(path)!r}, column {name!r}: row {column.index(None) + 1} is missing or no number."
            )
    return torch.tensor(np.array(numbers, dtype=np.float64).T.reshape(-1, *shape))


def _images(files: list[Path], run: LoadedRun) -> tuple[list[str], Tensor]:
    shape = run.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigurationError(
            f"input={str(files[0])!r}: it is an image, and this model takes inputs of shape {shape}. Give its data."
        )
    return [file.name for file in files], torch.stack([_image(file, shape) for file in files])


def _image(file: Path, shape: tuple[int, ...]) -> Tensor:
    """One image as numbers from 0 to 1, (channels, height, width)."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigurationError("Reading images needs Pillow: pip install 'dplip[images]'.") from None
    channels, height, width = shape
    try:
        with Image.open(file) as image:
            size: tuple[int, int] = image.size
            deep = image.mode in ("I", "F") or image.mode.startswith("I;")
            fits = size == (width, height) and not deep
            pixels: Any = np.array(image.convert("L" if channels == 1 else "RGB")) if fits else None
    except Exception as wrong:  # whatever a damaged file makes the reader raise
        raise ConfigurationError(f"image {file}: it cannot be read ({first_line(wrong)}).") from None
    if deep:
        raise ConfigurationError(f"image {file}: its pixels have more than 8 bits. Convert it, or give a .npy file.")
    if not fits:
        raise ConfigurationError(
            f"image {file}: it is {size[0]} pixels wide and {size[1]} high, and the model takes {width} by {height}. "
            "Scale it as the training data were scaled."
        )
    return torch.from_numpy(pixels.reshape(height, width, channels).astype(np.float32) / 255).permute(2, 0, 1)
