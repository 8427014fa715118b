"""What all tests share: one thread, and a folder that holds a table and its schema."""

from pathlib import Path

import pytest
import torch
from helpers.tables import SCHEMA, frame

from dplip.data import write_schema
from dplip.rules.registry import RULES, registered

torch.set_num_threads(1)  # tests run side by side, and small ones gain nothing from more


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame().to_csv(tmp_path / "shop.csv", index=False)
    write_schema(tmp_path / "shop.schema.json", SCHEMA)
    return tmp_path


@pytest.fixture
def rules_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that registers a rule of its own leaves no trace for others."""
    monkeypatch.setattr(RULES, "rules", registered())
    monkeypatch.setattr(RULES, "classes", set(RULES.classes))
