"""Finished runs, made once."""

from pathlib import Path

import pytest
from helpers import finished
from helpers.trainers import trainer

from dplip.runs import LoadedRun, load_run


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    return finished.digits(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def digits_run(digits_folder) -> LoadedRun:
    return load_run(digits_folder)


@pytest.fixture(scope="session")
def table_folder(tmp_path_factory) -> Path:
    return finished.table(tmp_path_factory.mktemp("tables") / "run")


@pytest.fixture(scope="session")
def regression_folder(tmp_path_factory) -> Path:
    return finished.regression(tmp_path_factory.mktemp("sums") / "run")


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory) -> Path:
    """A run of a model that no recipe makes."""
    folder = tmp_path_factory.mktemp("own") / "run"
    trainer(finished.own_model(), output_dir=folder, epochs=1).fit()
    return folder
