"""Files of image data sets, as they are published."""

import gzip
import struct
from pathlib import Path

import numpy as np

IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
CIFAR_FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
random = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def idx_pair(count: int) -> tuple[np.ndarray, np.ndarray]:
    return random.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def write_mnist(folder: Path, compress: bool = False) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [*idx_pair(12), *idx_pair(5)]
    for file, values in zip(IDX_FILES, arrays, strict=True):
        if compress:
            (folder / f"{file}.gz").write_bytes(gzip.compress(idx(values)))
        else:
            (folder / file).write_bytes(idx(values))
    return arrays


def cifar_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """As Python 2 wrote it: protocol 2, strings of bytes, arrays through numpy.core.multiarray."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01("
        + b"".join(map(number, images.shape))
        + b"tcnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    names = text(b"batch_label") + text(b"a batch") + text(b"filenames") + b"](" + text(b"a.png") + b"e"
    return b"\x80\x02}(" + names + text(b"labels") + listed + text(b"data") + array + b"u."


def cifar_images(count: int) -> np.ndarray:
    return random.integers(0, 256, (count, 3072), dtype=np.uint8)


def write_cifar(folder: Path) -> list[tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True, exist_ok=True)
    batches = [(cifar_images(2), [k % 10, 9]) for k in range(6)]
    for file, batch in zip(CIFAR_FILES, batches, strict=True):
        (folder / file).write_bytes(cifar_batch(*batch))
    return batches
