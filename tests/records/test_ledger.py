"""The ledger says what was spent, or refuses to say anything."""

import json
import time

import pytest
from helpers.forks import forks, in_a_fork

from dplip.accounting import Accountant, GaussianEvent
from dplip.errors import ConfigurationError, LedgerError
from dplip.records import Ledger, files, ledger_lines
from dplip.records import ledger as ledger_module

EVENT = GaussianEvent(1.1, 0.01)
OTHER = GaussianEvent(0.9, 0.02)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def written(path):
    """A closed ledger of three steps."""
    with Ledger(path, delta=1e-5, facts={"public_size": 100, "name": "naïve"}) as ledger:
        for event in (EVENT, OTHER, EVENT):
            ledger.append(event)
    return path


def test_it_records_every_step_with_its_header(written):
    record = Ledger.read(written)
    assert record.history() == [EVENT, OTHER, EVENT]
    assert (record.mechanism, record.neighboring, record.delta) == ("rdp", "add_remove", 1e-5)
    assert record.facts == {"public_size": 100, "name": "naïve"}
    header, *steps = map(json.loads, written.read_text().splitlines())
    assert header["version"] == 1 and header["run"] == record.run
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[1].items() >= {"noise_multiplier": 0.9, "sample_rate": 0.02}.items()


@pytest.mark.parametrize("mechanism", ["rdp", "prv"])
def test_epsilon_comes_from_the_file(path, mechanism):
    accountant = Accountant(mechanism)
    with Ledger(path, mechanism=mechanism, delta=1e-5) as ledger:
        assert ledger.epsilon() == 0.0
        for _ in range(30):
            ledger.append(EVENT)
            accountant.step(noise_multiplier=1.1, sample_rate=0.01)
        assert ledger.steps == 30
        assert ledger.epsilon() == Ledger.read(path).epsilon() == accountant.get_epsilon(1e-5)
        assert ledger.epsilon(1e-6) == accountant.get_epsilon(1e-6)


def test_a_delta_must_come_from_somewhere(path):
    with Ledger(path) as ledger, pytest.raises(ConfigurationError, match="delta=None"):
        ledger.epsilon()


def test_a_step_is_on_disk_when_append_returns(path, monkeypatch):
    synced = []
    with Ledger(path) as ledger:
        monkeypatch.setattr(ledger_module, "sync", lambda _: synced.append(path.read_bytes().count(b"\n")))
        ledger.append(EVENT)
        assert synced == [2]
        assert Ledger.read(path).history() == [EVENT]


def test_appending_is_cheap(path):
    with Ledger(path) as ledger:
        started = time.perf_counter()
        for _ in range(100):
            ledger.append(EVENT)
    assert time.perf_counter() - started < 5


# Resuming


def test_a_new_run_does_not_overwrite_an_old_one(written):
    before = written.read_bytes()
    with pytest.raises(LedgerError, match="resume=True"):
        Ledger(written, delta=1e-5)
    assert written.read_bytes() == before


def test_a_run_goes_on_where_it_stopped(written):
    run, facts = Ledger.read(written).run, {"public_size": 100, "name": "naïve"}
    with Ledger(written, delta=1e-5, facts=facts, run=run, resume=True) as ledger:
        assert (ledger.steps, ledger.run) == (3, run)
        ledger.append(OTHER)
    assert Ledger.read(written).history() == [EVENT, OTHER, EVENT, OTHER]


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "prv"},
        {"neighboring": "replace_one"},
        {"delta": 1e-6},
        {"facts": {}},
        {"run": "another"},
    ],
)
def test_another_run_cannot_go_on_with_it(written, change):
    same = {"delta": 1e-5, "facts": {"public_size": 100, "name": "naïve"}}
    (name,) = change
    with pytest.raises(LedgerError, match=f"{name}=.* on record"):
        Ledger(written, **(same | change), resume=True)


def test_there_must_be_something_to_resume(path):
    with pytest.raises(LedgerError, match="No such file"):
        Ledger(path, resume=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path, resume=True)
    Ledger(path).close()  # an empty file holds no run


# Damage


def test_every_changed_byte_is_noticed(written):
    content = written.read_bytes()
    lines = [content[:k].count(b"\n") + 1 for k in range(len(content))]
    for k in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[k] ^= 1
        written.write_bytes(damaged)
        with pytest.raises(LedgerError) as refused:
            Ledger.read(written)
        assert any(f"line {line}:" in str(refused.value) for line in (lines[k], lines[k] + 1))


@pytest.mark.parametrize(
    "edit, line",
    [
        (lambda lines: lines[:2] + lines[3:], 3),  # a step left out
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], 2),  # steps in another order
        (lambda lines: lines[:2] + lines[1:], 3),  # a step twice
        (lambda lines: lines[1:], 1),  # no header
        (lambda lines: [lines[0], lines[1].replace(b"1.1", b"9.9"), *lines[2:]], 2),
        (lambda lines: [lines[0].replace(b"add_remove", b"none"), *lines[1:]], 1),
        (lambda lines: [*lines, b"{}\n"], 5),
        (lambda lines: [*lines, b"[1]\n"], 5),
        (lambda lines: [*lines, b"\xff\n"], 5),
        (lambda lines: [*lines, b"\n"], 5),
        (lambda lines: [b'{"name":"foreign"}\n'], 1),
    ],
)
def test_an_edited_file_is_refused_at_the_line(written, edit, line):
    written.write_bytes(b"".join(edit(written.read_bytes().splitlines(keepends=True))))
    with pytest.raises(LedgerError, match=f"line {line}:"):
        Ledger.read(written)
    with pytest.raises(LedgerError, match=f"line {line}:"):
        Ledger(written, delta=1e-5, resume=True)


def test_a_sealed_line_of_nonsense_is_refused(path):
    with Ledger(path) as ledger:
        line, _ = ledger_lines.seal({"step": 1, "noise_multiplier": -1.0, "sample_rate": 2.0}, ledger._chain)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(LedgerError, match=r"line 2: .*noise_multiplier=-1\.0"):
        Ledger.read(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"hello", b"hello\n"])
def test_what_is_not_a_ledger_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        Ledger.read(path)


def test_a_missing_file_is_refused(path):
    with pytest.raises(LedgerError, match="No such file"):
        Ledger.read(path)


# Crashes


def test_a_torn_step_counts_as_the_dearest_so_far(written):
    content = written.read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    facts = {"public_size": 100, "name": "naïve"}
    for cut in (last + 1, (last + len(content)) // 2, len(content) - 1):
        written.write_bytes(content[:cut])
        with pytest.raises(LedgerError, match=r"line 4: torn.*resume=True"):
            Ledger.read(written)
        with Ledger(written, delta=1e-5, facts=facts, resume=True) as ledger:
            assert ledger.steps == 3
            assert ledger.history() == [EVENT, OTHER, GaussianEvent(0.9, 0.02)]
            ledger.append(EVENT)
        assert Ledger.read(written).history()[2:] == [OTHER, EVENT]
        assert b'"torn":true' in written.read_bytes()


def test_a_long_torn_tail_leaves_nothing_behind(written):
    written.write_bytes(written.read_bytes() + b"\0" * 5000)
    with Ledger(written, delta=1e-5, facts={"public_size": 100, "name": "naïve"}, resume=True) as ledger:
        assert ledger.steps == 4
    assert len(Ledger.read(written).history()) == 4


def test_a_torn_line_of_resuming_is_no_step(written):
    with Ledger(written, delta=1e-5, facts=Ledger.read(written).facts, resume=True) as ledger:
        ledger.say_resumed()
        ledger.append(OTHER)
        ledger.say_resumed()
    whole = Ledger.read(written)
    assert [step for step, _ in whole.resumes] == [3, 4] and len({number for _, number in whole.resumes}) == 2
    assert len(whole.chains) == 5
    written.write_bytes(written.read_bytes()[:-9])
    with Ledger(written, delta=1e-5, facts=whole.facts, resume=True) as ledger:
        ledger.append(EVENT)
    record = Ledger.read(written)
    assert record.history() == [EVENT, OTHER, EVENT, OTHER, EVENT] and len(record.resumes) == 1


def test_a_torn_first_step_has_no_price(path):
    Ledger(path).close()
    path.write_bytes(path.read_bytes() + b'{"step":1,')
    with pytest.raises(LedgerError, match="begin a new ledger"):
        Ledger(path, resume=True)


def test_a_torn_header_is_no_ledger(path):
    Ledger(path).close()
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path, resume=True)


def test_after_a_failed_write_nothing_follows(path, monkeypatch):
    def full(_):
        raise OSError("no space left")

    with Ledger(path) as ledger:
        ledger.append(EVENT)
        monkeypatch.setattr(ledger_module, "sync", full)
        with pytest.raises(LedgerError, match=r"line 3: .*no space left.*must not be released"):
            ledger.append(EVENT)
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="closed"):
            ledger.append(EVENT)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "missing" / "ledger.jsonl")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path)


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}])
def test_facts_must_be_json(path, facts):
    with pytest.raises(ConfigurationError, match="facts="):
        Ledger(path, facts=facts)
    assert not path.exists()


# One writer


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
@forks
def test_a_ledger_has_one_writer_at_a_time(path, monkeypatch):
    monkeypatch.setattr("dplip.records.files.PATIENCE", 0.1)
    first = Ledger(path)
    with pytest.raises(LedgerError, match="another run"):
        Ledger(path, resume=True)
    other = in_a_fork(lambda: Ledger(path, resume=True))
    assert isinstance(other, LedgerError) and "another run" in str(other)
    assert Ledger.read(path).history() == []  # reading needs no lock
    first.close()
    Ledger(path, resume=True).close()
