"""Damaged or foreign image files are refused with a message that says what to do."""

import contextlib
import gzip
import os
import pickle
from pathlib import Path

import pytest
from helpers.image_files import cifar_batch, cifar_images, idx, idx_pair
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dplip.data.formats import read_cifar_batch, read_idx_split
from dplip.errors import ConfigurationError

fuzz = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


IMAGES, LABELS = idx_pair(4)


def readable(value: object) -> str | None:
    return "file" if isinstance(value, bytes) else None


@pytest.mark.parametrize(
    "images, labels, problem",
    [
        (b"", idx(LABELS), "magic number is absent"),
        (idx(LABELS), idx(LABELS), "magic number is 00000801, not 00000803"),
        (idx(IMAGES)[:10], idx(LABELS), "10 bytes are fewer than the header's 16"),
        (idx(IMAGES)[:-1], idx(LABELS), r"declares 4 of shape \(28, 28\), but 3135 bytes"),
        (idx(IMAGES) + b"\0", idx(LABELS), "but 3137 bytes"),
        (idx(IMAGES[:, 1:]), idx(LABELS), r"images are \(27, 28\)"),
        (idx(IMAGES), idx(LABELS[:3]), "3 labels for 4 images"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "0 labels for 0 images"),
        (idx(IMAGES), idx(LABELS + 8), "label 11 of example 3"),
        (gzip.compress(idx(IMAGES))[:-9], idx(LABELS), "EOFError"),
        (gzip.compress(idx(IMAGES))[:9] + b"garbage!", idx(LABELS), "cannot be read"),
        (gzip.compress(idx(IMAGES))[:-8] + bytes(8), idx(LABELS), "CRC"),
    ],
    ids=readable,
)
def test_damaged_idx_files(tmp_path, images, labels, problem):
    paths = tmp_path / "images", tmp_path / "labels"
    paths[0].write_bytes(images)
    paths[1].write_bytes(labels)
    with pytest.raises(ConfigurationError, match=f"file .*{problem}.*download"):
        read_idx_split(*paths)


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path, protocol):
    path, made = tmp_path / "batch", tmp_path / "made"
    path.write_bytes(pickle.dumps({b"data": Evil(made), b"labels": [1]}, protocol=protocol))
    with pytest.raises(ConfigurationError, match="which no CIFAR-10 file needs"):
        read_cifar_batch(path)
    assert not made.exists()


ROWS = cifar_images(2)


@pytest.mark.parametrize(
    "batch, problem",
    [
        (b"", "EOFError"),
        (b"garbage", "is not a CIFAR-10 batch"),
        (cifar_batch(ROWS, [1, 2])[:-20], "is not a CIFAR-10 batch"),
        (cifar_batch(ROWS, [1]), "1 labels for 2 images"),
        (cifar_batch(ROWS[:0], []), "0 labels for 0 images"),
        (cifar_batch(ROWS, [1, 10]), "label 10 of example 1"),
        (cifar_batch(ROWS, [1, -1]), "not a list of whole numbers"),
        (cifar_batch(ROWS, [1, 256]), "not a list of whole numbers"),
        (cifar_batch(ROWS[:, 1:], [1, 2]), r"of shape \(2, 3071\)"),
        (cifar_batch(ROWS, [1, 2]).replace(b"u1", b"O8"), "other than uint8"),
        (cifar_batch(ROWS, [1, 2]).replace(b"u1", b"f4"), "other than uint8"),
        (pickle.dumps({b"data": [1], b"labels": [1]}, 3), "is not a CIFAR-10 batch"),
        (pickle.dumps({b"data": {}, b"labels": [1]}, 3), "of shape None"),
        (pickle.dumps({b"data": ROWS, b"labels": b"12"}, 3), "not a list"),
        (pickle.dumps({b"data": ROWS}, 3), "KeyError: b'labels'"),
        (pickle.dumps([1], 3), "TypeError"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "TypeError"),  # a memo index for which C would take 64 GB
    ],
    ids=readable,
)
def test_damaged_cifar_batches(tmp_path, batch, problem):
    path = tmp_path / "batch"
    path.write_bytes(batch)
    with pytest.raises(ConfigurationError, match=f"file .*{problem}.*download"):
        read_cifar_batch(path)


def mutations(original: bytes) -> st.SearchStrategy[bytes]:
    """The file with a few bytes changed, a part cut out or doubled, or bytes of no relation to it."""
    place = st.integers(0, min(len(original), 400))  # headers and opcodes: where a change matters

    def edited(edits: list[tuple[int, int, bytes]]) -> bytes:
        changed = original
        for start, length, new in edits:
            changed = changed[:start] + new + changed[start + length :]
        return changed

    edits = st.lists(st.tuples(place, st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=3)
    return st.one_of(st.binary(max_size=200), edits.map(edited), place.map(lambda end: original[:end]))


@fuzz
@given(images=mutations(idx(IMAGES)), labels=mutations(idx(LABELS)))
@example(images=idx(IMAGES), labels=idx(LABELS))
def test_any_bytes_as_idx_are_read_or_refused(tmp_path, images, labels):
    paths = tmp_path / "images", tmp_path / "labels"
    for compress in (bytes, gzip.compress):
        paths[0].write_bytes(compress(images))
        paths[1].write_bytes(compress(labels))
        with contextlib.suppress(ConfigurationError):
            pixels, classes = read_idx_split(*paths)
            assert pixels.shape == (len(classes), 1, 28, 28) and classes.max() < 10


@fuzz
@given(raw=mutations(gzip.compress(idx(IMAGES))))
def test_any_bytes_as_gzip_are_read_or_refused(tmp_path, raw):
    paths = tmp_path / "images", tmp_path / "labels"
    paths[0].write_bytes(raw)
    paths[1].write_bytes(idx(LABELS))
    with contextlib.suppress(ConfigurationError):
        read_idx_split(*paths)


@fuzz
@given(raw=st.one_of(mutations(cifar_batch(ROWS, [1, 2])), mutations(pickle.dumps({b"data": ROWS, b"labels": [1]}, 4))))
@example(raw=cifar_batch(ROWS, [1, 2]))
def test_any_bytes_as_a_cifar_batch_are_read_or_refused(tmp_path, raw):
    path = tmp_path / "batch"
    path.write_bytes(raw)
    with contextlib.suppress(ConfigurationError):
        pixels, classes = read_cifar_batch(path)
        assert pixels.shape == (len(classes), 3, 32, 32) and classes.max() < 10
