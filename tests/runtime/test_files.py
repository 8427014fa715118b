"""Files that are written whole."""

import os

import pytest

from dplip.data import read_schema, write_schema
from dplip.data.schema import Column, Schema
from dplip.errors import ConfigurationError

OLD, NEW = (Schema(Column("y", "boolean"), (Column(name, "boolean"),)) for name in ("old", "new"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(call, tmp_path, monkeypatch):
    path = tmp_path / "schema.json"
    write_schema(path, OLD)

    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(ConfigurationError, match=r"cannot be written.*no space left"):
        write_schema(path, NEW)
    assert read_schema(path) == OLD and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("call, left", [("os.fsync", OLD), ("os.replace", OLD), ("sync_directory", NEW)])
def test_a_crash_leaves_the_old_file_or_the_new_one(call, left, tmp_path, monkeypatch):
    path = tmp_path / "schema.json"
    write_schema(path, OLD)
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(f"dplip.runtime.files.{call}", lambda *_: os._exit(3))
            write_schema(path, NEW)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert read_schema(path) == left
    write_schema(path, NEW)
    assert read_schema(path) == NEW and os.listdir(tmp_path) == [path.name]
