"""Fuzzing: whatever a file or a command line holds, a user sees a DPLipError and never a traceback.

``DPLIP_FUZZ`` sets the number of inputs for each of these; the nightly target asks for 1e5 in all.
"""

import json
import os
import struct

import pytest
from attacks.fuzz_readers import READERS, refused, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dplip.accounting import GaussianEvent
from dplip.cli.app import app
from dplip.errors import DPLipError
from dplip.records import Checkpoint, Ledger, ledger_lines, read_report
from dplip.records.ledger import begun

COUNT = int(os.environ.get("DPLIP_FUZZ", "120"))
many = settings(max_examples=COUNT, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=COUNT // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=6
)
NAMES = (
    "ledger",
    "version",
    "run",
    "mechanism",
    "neighboring",
    "delta",
    "facts",
    "step",
    "noise_multiplier",
    "sample_rate",
)


def sealed(records: list[dict]) -> bytes:
    """Lines whose checksums are right, whatever they say."""
    chain, content = "", b""
    for record in records:
        try:
            line, chain = ledger_lines.seal(record, chain)
        except ValueError:  # NaN has no place in JSON
            continue
        content += line
    return content


def read(path) -> None:
    """A ledger is read, and what it says can be used; or a DPLipError is raised."""
    begun(path)
    try:
        record = Ledger.read(path)
        record.epsilon(1e-5)
    except DPLipError:
        pass
    try:
        Ledger(path, resume=True).close()
    except DPLipError:
        pass


@many
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_ledger_or_refused(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    read(path)


@many
@given(
    changed=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    steps=st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3), max_size=2),
    tail=st.binary(max_size=10),
)
def test_any_lines_with_true_checksums_are_a_ledger_or_refused(tmp_path, changed, steps, tail):
    header = {
        **{"ledger": "dplip", "version": 1, "run": "r", "mechanism": "rdp", "neighboring": "add_remove"},
        **{"delta": 1e-5, "facts": {}},
        **changed,
    }
    lines = [{"step": k, "noise_multiplier": 1.0, "sample_rate": 0.1, **s} for k, s in enumerate(steps, start=1)]
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(sealed([header, *lines]) + tail)
    read(path)


@few
@given(cut=st.integers(0, 400), noise=st.binary(max_size=8), place=st.integers(0, 400), event=st.floats(0.1, 10))
def test_a_damaged_ledger_never_says_less_than_was_written(tmp_path, cut, noise, place, event):
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    with Ledger(path, delta=1e-5) as ledger:
        for _ in range(3):
            ledger.append(GaussianEvent(event, 0.1))
    content = path.read_bytes()
    place = min(place, len(content))
    path.write_bytes(
        content[: len(content) - min(cut, len(content))] if cut % 2 else content[:place] + noise + content[place:]
    )
    try:
        steps = len(Ledger.read(path).events)
    except DPLipError:
        return
    assert steps == path.read_bytes().count(b"\n") - 1 <= 3  # what is read was written; only whole lines can be missing


@many
@given(content=st.binary(max_size=200), length=st.integers(0, 2**64 - 1) | st.integers(0, 200))
def test_any_bytes_are_a_checkpoint_or_refused(tmp_path, content, length):
    path = tmp_path / "checkpoint.safetensors"
    for whole in (content, struct.pack("<Q", length) + content):
        path.write_bytes(whole)
        with pytest.raises(DPLipError):
            Checkpoint.read(path)


@many
@given(state=VALUES, version=VALUES)
def test_any_metadata_is_a_checkpoint_or_refused(tmp_path, state, version):
    from safetensors.torch import save

    from dplip.records.checkpoint import _digest

    path = tmp_path / "checkpoint.safetensors"
    text = json.dumps({"checkpoint": "dplip", "version": 1, "state": state} if state else version)
    path.write_bytes(save({}, {"dplip": text, "digest": _digest(text, {})}))
    with pytest.raises(DPLipError):
        Checkpoint.read(path)


@many
@given(content=st.binary(max_size=100) | VALUES.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_report_or_refused(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(DPLipError):
        read_report(tmp_path)


SEEDS = {name: [content for content in contents if content[:1] == b"{"] for name, contents in seeds().items()}


def places(value, path=()):
    """The path of every node of nested JSON."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(value, path, new):
    """The same with another node there, or without one."""
    if not path:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    if new is DROPPED and len(path) == 1:
        del copied[path[0]]
    else:
        copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


DROPPED = object()
EXTREME = st.sampled_from([DROPPED, 10**400, -(10**400), 2**63, 1e-320, 1e308, "inf", "nan", [[]], {"": {}}, True, ""])


@many
@given(name=st.sampled_from(sorted(SEEDS)), data=st.data())
def test_a_valid_file_with_other_values_is_read_or_refused(tmp_path, name, data):
    seed = data.draw(st.sampled_from(SEEDS[name]))
    lines = [json.loads(line) for line in seed.splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(lines))[1:]))
        lines = changed(lines, path, data.draw(EXTREME | VALUES))
        if not lines or lines is DROPPED:
            return
    try:
        content = "\n".join(json.dumps(line) for line in lines) + "\n"
    except TypeError:  # what was dropped is the root of a line
        return
    refused(READERS[name], tmp_path, content.encode())


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("opening", ["[", '{"a":', '{"columns":{"a":', "1" * 10])
def test_files_that_nest_without_end_are_refused(tmp_path, name, opening):
    for count in (600, 100_000):
        assert refused(READERS[name], tmp_path, opening.encode() * count) is None


@pytest.mark.parametrize("name", READERS)
def test_what_the_fuzzers_begin_from_is_valid(tmp_path, name):
    for content in SEEDS[name]:
        READERS[name](tmp_path, content)


NUMBERS = st.sampled_from(["0", "-1", "1", "0.1", "1e-5", "nan", "inf", "-inf", "1e400", "x", "", "0x10", "1_0", "50"])
FLAGS = ("--sample-rate", "--steps", "--noise-multiplier", "--epsilon", "--delta", "--accountant", "--ledger")


@few
@given(arguments=st.lists(st.tuples(st.sampled_from(FLAGS), NUMBERS | st.text(max_size=5)), max_size=5))
def test_any_arguments_of_account_are_answered_or_refused(tmp_path, arguments):
    done = CliRunner().invoke(app, ["account", *(word for pair in arguments for word in pair)])
    assert done.exception is None or isinstance(done.exception, DPLipError | SystemExit), done.exception


@few
@given(
    data=st.sampled_from(["digits", "mnits", "", "\0", "../x"]) | st.text(max_size=4),
    arguments=st.lists(
        st.tuples(
            st.sampled_from(
                ["--epsilon", "--delta", "--lr", "--epochs", "--batch-size", "--public-size", "--norm", "--seed"]
            ),
            st.sampled_from(["0", "-1", "nan", "-inf", "1e400", "x", ""]),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_arguments_of_train_from_which_no_run_can_be_made_are_refused(tmp_path, data, arguments):
    words = ["train", "--data", data, "--out", str(tmp_path / "run"), "--no-progress", "--epochs", "0"]
    done = CliRunner().invoke(app, [*words, *(word for pair in arguments for word in pair)])
    assert done.exit_code != 0
    assert isinstance(done.exception, DPLipError | SystemExit), done.exception


(FULL,) = (json.loads(content) for content in SEEDS["report"])
RUNS = st.dictionaries(
    st.sampled_from(["model", "data", "preset"]), VALUES | st.sampled_from(["l2", "monotone", {"lr": 0.1}])
)
REPORTS = st.builds(lambda run: json.dumps({**FULL, "run": run}).encode(), RUNS | VALUES)


@few
@given(command=st.sampled_from(["certify", "audit"]), content=st.binary(max_size=60) | REPORTS)
def test_any_folder_is_a_run_or_refused(tmp_path, command, content):
    (tmp_path / "report.json").write_bytes(content)
    done = CliRunner().invoke(app, [command, str(tmp_path)])
    assert done.exit_code != 0
    assert isinstance(done.exception, DPLipError | SystemExit), done.exception
