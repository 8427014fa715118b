"""Image data sets: read as published, and what is missing is named."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_files import CIFAR_FILES, IDX_FILES, cifar_images, write_cifar, write_mnist
from torch.utils.data import TensorDataset

from dplip.data import check_dataset, load
from dplip.data.formats import read_cifar_batch
from dplip.errors import ConfigurationError


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
