"""Real text that every installation has: names and docstrings from the source of dplip's own dependencies.

The class of a text is the library that it comes from. A record is one name, or one docstring's first sentences.
"""

from __future__ import annotations

import ast
import functools
import random
import re
import zlib
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = "numpy", "scipy", "sklearn", "torch"
FILES = 300
"""The most files of a library that are read."""
WORDS = 1024
"""Words are numbered by a public hash, from 1 on; 0 is for padding."""


@functools.cache
def definitions() -> list[tuple[str, str, int]]:
    """The name and the docstring of functions and classes, and the number of the library; in a fixed order."""
    found: dict[str, tuple[str, str, int]] = {}
    for label, library in enumerate(LIBRARIES):
        spec = find_spec(library)
        assert spec is not None and spec.origin is not None
        paths = [p for p in sorted(Path(spec.origin).parent.rglob("*.py")) if "tests" not in p.parts]
        for path in random.Random(0).sample(paths, min(FILES, len(paths))):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("__"):
                    found.setdefault(node.name, (node.name, ast.get_docstring(node) or "", label))
    texts = list(found.values())
    random.Random(0).shuffle(texts)
    return texts


def names(length: int) -> tuple[list[list[int]], list[int]]:
    """The letters of each name, as bytes, cut and filled up with zeros to one length; and the libraries."""
    rows = [(list(name.encode()[:length].ljust(length, b"\0")), label) for name, _, label in definitions()]
    return [row for row, _ in rows], [label for _, label in rows]


def sentences(most: int = 32) -> tuple[list[list[int]], list[int]]:
    """The numbers of the first words of each docstring, without the libraries' own names; and the libraries."""
    rows = []
    for _, text, label in definitions():
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in (*LIBRARIES, "scikit", "np")]
        if len(words) >= 3:
            rows.append(([1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in words[:most]], label))
    return [row for row, _ in rows], [label for _, label in rows]


def split(rows: list, share: float = 0.8) -> tuple[list, list]:
    """The records to train with, and those to test with."""
    cut = int(share * len(rows))
    return rows[:cut], rows[cut:]
