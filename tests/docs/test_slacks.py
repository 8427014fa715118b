"""The table of slacks in docs/guarantees.md is that of the code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
TABLE = {
    (file, name.strip("`")): value
    for name, file, value in re.findall(r"^\| (written out|`\w+`) \| `([\w/]+\.py)` \| ([^|]+) \|", PAGE, re.MULTILINE)
}
TOLERANCES = ("_REPLAY_SLACK",)
"""Of which the page says that no bound rests on them."""


def test_every_slack_of_the_code_is_in_the_table_with_its_value():
    found = {
        (path.relative_to(ROOT / "dplip").as_posix(), name): value
        for path in (ROOT / "dplip").rglob("*.py")
        for name, value in re.findall(r"^ *([A-Z_]+_SLACK) = (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if name not in TOLERANCES
    }
    assert len(found) >= 8 and {key: TABLE.get(key) for key in found} == found


def test_every_value_of_the_table_is_in_its_file():
    assert len(TABLE) >= 15
    for (file, name), value in TABLE.items():
        if name != "sum_slack":  # which depends on what is summed
            assert value in (ROOT / "dplip" / file).read_text(encoding="utf-8"), (file, name)
