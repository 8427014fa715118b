"""The documentation runs: examples, names, signatures and links of README.md and docs/ are those of the code."""

import doctest
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dplip
from dplip.losses import Loss
from dplip.training.evaluation import RADII

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """Number of the first line, and content, of every fenced block in a language."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)) + 1, found.group(1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, rules_as_before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failures: list[str] = []
    for line, code in blocks(page.read_text(encoding="utf-8"), "python"):
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line - 1)
            runner.run(test, out=failures.append, clear_globs=False)
            names.update(test.globs)
        else:
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    assert not failures, "".join(failures)


def test_every_public_name_is_on_the_page_of_names():
    losses = [k for k, v in vars(dplip.losses).items() if isinstance(v, type) and issubclass(v, Loss) and k[0] != "_"]
    public = [
        *(f"dplip.{name}" for name in dplip.__all__ if name not in ("losses", "models", "nn")),
        *(f"dplip.nn.{name}" for name in dplip.nn.__all__),
        *(f"dplip.losses.{name}" for name in losses),
    ]
    missing = [name for name in public if not re.search(rf"`{re.escape(name)}[`(]", API)]
    assert not missing


def reached(name: str) -> Any:
    """What a dotted name stands for after ``import dplip``, by attributes alone."""
    value: Any = dplip
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_every_name_is_reached_as_it_is_written():
    names = sorted(set(re.findall(r"`(dplip(?:\.\w+)+)", API)))
    assert len(names) > 150
    code = "import sys, dplip\nfor name in sys.argv[1:]: eval(name)"
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def signatures() -> list[tuple[str, str]]:
    return re.findall(r"`(dplip[\w.]*)\(([^`]*)\)`", API)


def test_the_page_of_names_holds_signatures():
    assert len(signatures()) > 60


@pytest.mark.parametrize("name, arguments", signatures(), ids=lambda text: text[:40])
def test_a_signature_on_the_page_of_names_is_that_of_the_code(name, arguments):
    names: dict[str, Any] = {"inf": math.inf, "RADII": RADII}
    exec(f"def stated({arguments}): ...", names)
    assert parameters(names["stated"]) == parameters(reached(name))


def parameters(function: Any) -> list[tuple[Any, ...]]:
    """Name, kind and default of each public parameter; none where a constructor only passes on what it gets."""
    found = list(inspect.signature(function).parameters.values())
    if [p.kind for p in found] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        return []
    return [(p.name, p.kind, p.default) for p in found if p.name != "self" and not p.name.startswith("_")]


def test_the_readme_names_the_two_commands():
    readme = PAGES[0].read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("run", "test"):
        assert f"make {command}" in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_the_tree_in_the_readme_is_that_of_the_package():
    (tree,) = [code for _, code in blocks(PAGES[0].read_text(encoding="utf-8"), "text") if code.startswith("dplip/\n")]
    shown = set(re.findall(r"^  ([\w.]+\.py|\w+/)", tree, re.MULTILINE))
    package = ROOT / "dplip"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert shown == {path.name for path in package.glob("*.py") if path.name[0] != "_"} | folders


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    relative = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in relative if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"\b((?:tests|benchmarks|docs|dplip)/[\w/]+\.(?:py|md))\b", page.read_text(encoding="utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1].strip("\"'") == dplip.__version__
