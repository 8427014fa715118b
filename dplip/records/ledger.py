"""The durable record of what a run spent: one line a step, on disk before the step's noise is released.

A ledger is a text file of JSON lines. The first is a header: format version, run id, accounting mechanism,
neighbouring relation, delta, public facts. Each further line is one step, in order:

    {"step":1,"noise_multiplier":1.1,"sample_rate":0.01,"chain":"6f..."}

Where batches are of a fixed size, ``batch_size`` and ``size`` stand in place of ``sample_rate``. Each resumption adds a
line with a random number, which tells resumed copies of a run apart:

    {"resumed":"0f3a...","step":12,"chain":"c4.."}

``chain`` is a digest of the line and of the chain before it, so that a line that was changed, moved, dropped or added
in between does not verify. It is a checksum and not a signature: it shows damage and slips, not a forger who recomputes
it. It does not show that whole lines are missing at the end; compare the number of steps with a checkpoint's.

A crash in the middle of a write leaves a torn last line. :meth:`Ledger.append` had not returned, so the noise of that
step was never released; still, ``resume=True`` counts a step at the least noise and the highest rate of the record, and
writes it in place of the torn line, so that no released step can be left out.
"""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dplip.accounting import Event, create_accountant
from dplip.errors import ConfigurationError, LedgerError
from dplip.records.files import open_locked, sync
from dplip.records.ledger_lines import VERSION, LedgerRecord, parse, seal
from dplip.runtime.files import sync_directory


class Ledger:
    """An append-only file of the steps of one run, open for writing by one process at a time.

    Args:
        path: the file. For a new run it must not exist, or be empty.
        mechanism: accounting mechanism, "rdp", "prv" or "pld".
        neighboring: neighbouring relation that the noise multipliers refer to.
        delta: the delta at which the run reports, if any.
        facts: public facts to keep with the run, such as its sizes; anything that JSON can hold.
        run: identifier of the run; by default drawn at random.
        resume: continue an existing ledger with an equal header (of any run, unless ``run`` is given).

    Raises:
        LedgerError: the file exists without ``resume``, is missing with it, is damaged, of another run or open
            elsewhere, or cannot be written.

    Guarantee: when :meth:`append` returns, the operating system has confirmed that the step is on disk.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mechanism: str = "rdp",
        neighboring: str = "add_remove",
        delta: float | None = None,
        facts: Mapping[str, Any] | None = None,
        run: str | None = None,
        resume: bool = False,
    ) -> None:
        create_accountant(mechanism, neighboring)
        self.path = Path(path)
        header = {
            "ledger": "dplip",
            "version": VERSION,
            "run": secrets.token_hex(8) if run is None else run,
            "mechanism": mechanism,
            "neighboring": neighboring,
            "delta": delta,
            "facts": dict(facts or {}),
        }
        try:
            line, chain = seal(header, "")
        except (TypeError, ValueError) as problem:
            raise ConfigurationError(f"facts={facts!r}: only JSON values can be kept; {problem}") from None
        self._lines = 1
        self._file: BinaryIO | None = open_locked(self.path, create=not resume)
        try:
            content = self._file.read()
            if resume:
                self._resume(content, json.loads(line), any_run=run is None)
            elif content:
                raise LedgerError(
                    f"{self.path}: {len(content)} bytes of a ledger are there already, and a new run would "
                    "hide what it spent; choose another path, or pass resume=True to continue that run"
                )
            else:
                self.run, self._steps, self._chain, self._last = str(header["run"]), 0, chain, chain
                self._write(line)
                sync_directory(self.path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def steps(self) -> int:
        """The number of steps on record."""
        return self._steps

    @property
    def chain(self) -> str:
        """The checksum of all lines up to the last step on record, which identifies the run at this step."""
        return self._chain

    def append(self, event: Event) -> None:
        """Put one more step on disk; to be called before its noise is released.

        Raises:
            LedgerError: the step cannot be written. It must not be released, and the ledger is closed.
        """
        self._append({"step": self._steps + 1, **asdict(event)})
        self._steps, self._chain = self._steps + 1, self._last

    def history(self) -> list[Event]:
        """The event of every step, read back from the file."""
        return self.read(self.path).history()

    def epsilon(self, delta: float | None = None) -> float:
        """Epsilon at ``delta``, by default the ledger's own, recomputed from the file."""
        return self.read(self.path).epsilon(delta)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LedgerRecord:
        """Read and verify a ledger, whether or not a run has it open.

        Raises:
            LedgerError: the file is missing, damaged, edited, cut off in a line, or no ledger; names the line.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as problem:
            raise LedgerError(f"{path}: cannot be read ({problem.strerror}); pass a ledger's path") from None
        record, end = parse(content, path)
        if end < len(content):
            raise LedgerError(
                f"{path}, line {len(record.events) + len(record.resumes) + 2}: torn, as a crash leaves it; open "
                "the ledger with resume=True, which counts that step as spent"
            )
        return record

    def close(self) -> None:
        """Close the file and give up the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say_resumed(self) -> None:
        """Record a resumption of this run, under a fresh random number that tells copies apart.

        Raises:
            LedgerError: as :meth:`append`.
        """
        self._append({"resumed": secrets.token_hex(8), "step": self._steps})

    def _append(self, record: Mapping[str, Any]) -> None:
        line, chain = seal(record, self._last)
        self._write(line)
        self._last, self._lines = chain, self._lines + 1

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise LedgerError(f"{self.path}: this ledger is closed; open it again with resume=True")
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{written} of {len(line)} bytes written")
            sync(self._file.fileno())
        except OSError as problem:  # what is on disk is unknown now: nothing may follow it
            self.close()
            raise LedgerError(
                f"{self.path}, line {self._lines + 1}: it could not be written ({problem}), so the "
                "step must not be released; make room or mend the disk, then open the ledger with resume=True"
            ) from None

    def _resume(self, content: bytes, expected: dict[str, Any], any_run: bool) -> None:
        assert self._file is not None
        record, end = parse(content, self.path)
        self.run, self._steps, self._chain = record.run, len(record.events), record.chains[-1]
        whole = content[:end].splitlines()
        self._last, self._lines = str(json.loads(whole[-1])["chain"]), len(whole)
        for name in ("mechanism", "neighboring", "delta", "facts") + (() if any_run else ("run",)):
            before, now = getattr(record, name), expected[name]
            if before != now:
                if name == "facts":  # those alone that differ
                    differ = [k for k in {**before, **now} if before.get(k) != now.get(k)]
                    before, now = ({k: facts.get(k) for k in differ} for facts in (before, now))
                raise LedgerError(
                    f"{self.path}: {name}={before!r} on record, {name}={now!r} now: one ledger is one run; continue "
                    "with the recorded value, or begin a new ledger"
                )
        if content[end:].startswith(b'{"resumed"'):  # a torn line that is no step
            self._file.seek(end)
            self._file.truncate()
            return
        if end == len(content):
            return
        if not record.events:
            raise LedgerError(
                f"{self.path}, line {self._lines + 1}: the first step is torn, so that its cost is unknown; no step "
                "was released yet, begin a new ledger"
            )
        kind: Any = type(record.events[0])  # the kind of all, as parse() refuses a mixture
        torn = {"step": self._steps + 1, **asdict(kind.worst(record.events)), "torn": True}
        self._file.seek(end)  # over the torn bytes, so that a second crash leaves a torn line again
        self._append(torn)
        self._file.truncate()
        sync(self._file.fileno())
        self._steps, self._chain = self._steps + 1, self._last


def epsilon_together(records: Sequence[LedgerRecord], delta: float) -> float:
    """Epsilon at ``delta`` of several runs on the same data; steps that copies of a run share count for each.

    Raises:
        ConfigurationError: there are no records, or several mechanisms or neighbouring relations among them.
    """
    kinds = {(record.mechanism, record.neighboring) for record in records}
    if len(kinds) != 1:
        raise ConfigurationError(
            f"records={sorted(kinds)}: what adds up is of one mechanism and one neighbouring relation. Give such "
            "ledgers."
        )
    accountant = create_accountant(*kinds.pop())
    for event in (event for record in records for event in record.events):
        accountant.count(event)
    return accountant.get_epsilon(delta)


def begun(path: str | os.PathLike[str]) -> bool:
    """Whether a ledger with a whole header exists; without one, no step can have been released."""
    try:
        with open(path, "rb") as file:
            return file.readline().endswith(b"\n")
    except OSError:
        return False
