"""Data sets: read as published, damaged or foreign files refused with a message that says what to do."""

import contextlib
import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from dplip.data import check_dataset, holdout, load
from dplip.data.formats import read_cifar_batch, read_idx_split
from dplip.errors import ConfigurationError

IDX_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
CIFAR_FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
fuzz = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def assert_images(dataset: TensorDataset, pixels: np.ndarray, labels: np.ndarray) -> None:
    images, targets = dataset.tensors
    assert images.dtype == torch.float32 and targets.dtype == torch.int64
    assert torch.equal(images, torch.tensor(pixels, dtype=torch.float32) / 255)
    assert targets.tolist() == list(labels)


def test_digits():
    data = load()
    assert (data.name, data.input_shape, data.num_classes) == ("digits", (1, 8, 8), 10)
    assert (len(data.train), len(data.test)) == (1437, 360)
    for dataset in (data.train, data.test):
        images, labels = dataset.tensors
        assert images.shape[1:] == (1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1
        assert (torch.bincount(labels) / len(labels)).sub(0.1).abs().max() < 0.01
        check_dataset(dataset, what="digits", num_classes=10, finite=True)


def test_the_split_of_digits_is_fixed():
    first, second = load("digits"), load("digits")
    assert torch.equal(first.test.tensors[0], second.test.tensors[0])
    assert first.test.tensors[1][:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_idx_data_sets(tmp_path, name, compress, inside):
    x, y, xt, yt = write_mnist(tmp_path / name if inside else tmp_path, compress)
    data = load(name, tmp_path)
    assert (data.name, data.input_shape, data.num_classes) == (name, (1, 28, 28), 10)
    assert_images(data.train, x[:, None], y)
    assert_images(data.test, xt[:, None], yt)


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "cifar10", "."])
def test_cifar10(tmp_path, folder):
    batches = write_cifar(tmp_path / folder)
    data = load("cifar10", str(tmp_path))
    assert (data.input_shape, data.num_classes) == ((3, 32, 32), 10)
    pixels = np.concatenate([images for images, _ in batches[:5]]).reshape(-1, 3, 32, 32)
    assert_images(data.train, pixels, np.concatenate([labels for _, labels in batches[:5]]))
    assert_images(data.test, batches[5][0].reshape(-1, 3, 32, 32), np.array(batches[5][1]))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_cifar10_batches_written_by_python_3(tmp_path, protocol):
    images = cifar_images(3)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({b"data": images, b"labels": [1, 2, 3]}, protocol=protocol))
    if protocol < 3:  # these spell bytes as a call of _codecs.encode
        with pytest.raises(ConfigurationError, match=r"_codecs\.encode"):
            read_cifar_batch(path)
    else:
        assert np.array_equal(read_cifar_batch(path)[0].reshape(3, -1), images)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("DPLIP_DATA", str(tmp_path))
    assert len(load("mnist").train) == 12


def test_no_folder_at_all(monkeypatch):
    monkeypatch.delenv("DPLIP_DATA", raising=False)
    with pytest.raises(ConfigurationError, match=r"train-images-idx3-ubyte\.gz.*DIR/mnist.*--data-dir.*DPLIP_DATA"):
        load("mnist")


@pytest.mark.parametrize("name, missing", [("mnist", IDX_FILES), ("cifar10", CIFAR_FILES)])
def test_missing_files_are_named_with_what_to_download(tmp_path, name, missing):
    with pytest.raises(ConfigurationError) as failure:
        load(name, tmp_path / "nowhere")
    for word in [*missing, "download", "nowhere", "home page"]:
        assert word in str(failure.value)


def test_only_the_missing_file_is_named(tmp_path):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / IDX_FILES[3]).unlink()
    with pytest.raises(ConfigurationError, match="has no t10k-labels-idx1-ubyte: download"):
        load("mnist", tmp_path)


def test_mnist_is_not_taken_for_fashion_mnist(tmp_path):
    write_mnist(tmp_path / "mnist")
    assert len(load("mnist", tmp_path / "mnist").train) == 12
    with pytest.raises(ConfigurationError, match=r"of Fashion-MNIST"):
        load("fashion-mnist", tmp_path / "mnist")


@pytest.mark.parametrize(
    "name, nearest", [("fashion_mnist", "fashion-mnist"), ("CIFAR-10", "cifar10"), ("digit", "digits")]
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(ConfigurationError, match=f"did you mean '{nearest}'.*digits, mnist, fashion-mnist, cifar10"):
        load(name)


def test_an_unknown_name_like_none_gets_the_list():
    with pytest.raises(ConfigurationError, match="data set: choose one of digits"):
        load("zzz")


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


class Items(Dataset):
    """A data set that is not a TensorDataset."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Doubled(TensorDataset):
    """A TensorDataset whose items are not its tensors."""

    def __getitem__(self, index: int):
        return self.tensors[0][index] / 0, self.tensors[1][index]


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


def as_dataset(kind: str, inputs: torch.Tensor, targets: torch.Tensor) -> Dataset:
    return TensorDataset(inputs, targets) if kind == "tensors" else Items(list(zip(inputs, targets, strict=True)))


both = pytest.mark.parametrize("kind", ["tensors", "items"])


@both
@pytest.mark.parametrize("targets", [[0, 1, 2], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_sound_data_passes(kind, targets):
    dataset = as_dataset(kind, torch.rand(3, 2), torch.tensor(targets))
    check_dataset(dataset, what="train_dataset", num_classes=3, finite=True)


@both
def test_empty_data_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"train_dataset=\w+ is empty"):
        check_dataset(as_dataset(kind, torch.rand(0, 2), torch.zeros(0)), what="train_dataset")


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["input", "target"])
def test_numbers_that_are_not_finite_are_refused_when_asked(kind, bad, part):
    size, first = {"tensors": (9000, 8500), "items": (9, 5)}[kind]  # tensors: past the first chunk
    columns = {"input": torch.rand(size, 2), "target": torch.rand(size)}
    columns[part][first:] = bad
    dataset = as_dataset(kind, columns["input"], columns["target"])
    check_dataset(dataset, what="eval_dataset")
    with pytest.raises(ConfigurationError, match=f"eval_dataset {part} {first}.*finite"):
        check_dataset(dataset, what="eval_dataset", finite=True)


@both
@pytest.mark.parametrize("bad", [-1, 3, 255, 0.5, torch.nan, torch.inf])
def test_labels_out_of_range_are_refused(kind, bad):
    dataset = as_dataset(kind, torch.rand(4, 2), torch.tensor([0, 1, bad, 2]))
    check_dataset(dataset, what="train_dataset")
    with pytest.raises(ConfigurationError, match=r"train_dataset label 2=\S+ is not one class.* 0 to 2"):
        check_dataset(dataset, what="train_dataset", num_classes=3)


@both
def test_one_label_an_example(kind):
    dataset = as_dataset(kind, torch.rand(4, 2), torch.eye(4))
    with pytest.raises(ConfigurationError, match=r"label 0 of shape \(4,\)"):
        check_dataset(dataset, what="train_dataset", num_classes=4)


def test_a_subclass_is_judged_by_its_items():
    dataset = Doubled(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ConfigurationError, match="train_dataset input 0"):
        check_dataset(dataset, what="train_dataset", finite=True)


@pytest.mark.parametrize("item", [(1.0, "cat"), 3, (1.0,), (1.0, 2, 3), {"x": 1}])
def test_items_that_are_not_pairs_are_refused(item):
    with pytest.raises(ConfigurationError, match=r"train_dataset\[1\].*not a pair"):
        check_dataset(Items([(1.0, 2), item]), what="train_dataset")


@pytest.mark.parametrize("columns", [1, 3])
def test_a_tensor_dataset_has_two_tensors(columns):
    with pytest.raises(ConfigurationError, match=f"holds {columns} tensors"):
        check_dataset(TensorDataset(*[torch.rand(2)] * columns), what="train_dataset")


def test_data_without_a_length_is_refused():
    with pytest.raises(ConfigurationError, match="train_dataset=Endless has no length"):
        check_dataset(Endless(), what="train_dataset")


def numbered(size: int) -> TensorDataset:
    return TensorDataset(torch.arange(size), torch.arange(size) % 3)


def test_holdout_parts_the_data():
    dataset = numbered(2000)
    train, held = holdout(dataset, 0.25, seed=1)
    assert sorted(torch.cat([train.tensors[0], held.tensors[0]]).tolist()) == list(range(2000))
    assert abs(len(held) - 500) < 100
    assert torch.equal(held.tensors[1], held.tensors[0] % 3)
    assert torch.equal(holdout(dataset, 0.25, seed=1)[1].tensors[0], held.tensors[0])
    assert not set(holdout(dataset, 0.25, seed=2)[1].tensors[0].tolist()) == set(held.tensors[0].tolist())


@pytest.mark.parametrize("size", [16, 100, 1023])
def test_holdout_keeps_neighbours_neighbouring_wherever_the_example_stands(size):
    whole = numbered(size)
    parts = [part.tensors[0].tolist() for part in holdout(whole, 0.4, 5)]
    for gone in (0, 1, size // 2, size - 1):
        fewer = TensorDataset(*(torch.cat([t[:gone], t[gone + 1 :]]) for t in whole.tensors))
        for part, before in zip(holdout(fewer, 0.4, 5), parts, strict=True):
            assert part.tensors[0].tolist() == [value for value in before if value != gone]


def test_holdout_knows_an_example_by_its_values_whatever_their_type():
    torch.manual_seed(0)
    x, y = torch.rand(400, 2, 3, dtype=torch.bfloat16), torch.rand(400) < 0.5
    x[200:], y[200:] = x[:200], y[:200]
    train, held = holdout(TensorDataset(x, y), 0.5, 0)
    assert len(train) % 2 == len(held) % 2 == 0 and 60 < len(train) < 340  # equal examples go to one part
    turned = holdout(TensorDataset(x.flip(0), y.flip(0)), 0.5, 0)
    assert torch.equal(turned[0].tensors[0].flip(0), train.tensors[0])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_refuses_a_fraction_outside_0_1(fraction):
    with pytest.raises(ConfigurationError, match="fraction="):
        holdout(numbered(10), fraction, 0)


def test_holdout_refuses_empty_parts_and_negative_seeds():
    with pytest.raises(ConfigurationError, match="one part empty"):
        holdout(numbered(2), 0.001, 0)
    with pytest.raises(ConfigurationError, match="seed=-1"):
        holdout(numbered(10), 0.5, -1)


@pytest.fixture
def published() -> Path:
    """The folder of the published files, for those who have them."""
    if "DPLIP_DATA" not in os.environ:
        pytest.skip("DPLIP_DATA names no folder of published data sets")
    return Path(os.environ["DPLIP_DATA"])


@pytest.mark.parametrize(
    "name, shape, sizes",
    [
        ("mnist", (1, 28, 28), (60000, 10000)),
        ("fashion-mnist", (1, 28, 28), (60000, 10000)),
        ("cifar10", (3, 32, 32), (50000, 10000)),
    ],
)
def test_published_data(published, name, shape, sizes):
    data = load(name, published)
    assert (data.input_shape, (len(data.train), len(data.test))) == (shape, sizes)
    for dataset in (data.train, data.test):
        check_dataset(dataset, what=name, num_classes=10, finite=True)
        images, labels = dataset.tensors
        assert images.min() == 0 and images.max() == 1 and len(labels.unique()) == 10
