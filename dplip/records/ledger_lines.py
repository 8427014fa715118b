"""The lines of a ledger: their format, their checksums, and the epsilon of their events."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dplip.accounting import Event, create_accountant, event_of
from dplip.errors import ConfigurationError, LedgerError

VERSION = 1


@dataclass(frozen=True)
class LedgerRecord:
    """The content of a verified ledger."""

    run: str
    mechanism: str
    neighboring: str
    delta: float | None
    facts: Mapping[str, Any]
    events: tuple[Event, ...]
    chains: tuple[str, ...]
    """The checksum after the header, and after each step."""
    resumes: tuple[tuple[int, str], ...] = ()
    """For each resumption, the number of steps before it and its random number."""

    def history(self) -> list[Event]:
        """The event of every step, in order."""
        return list(self.events)

    def epsilon(self, delta: float | None = None) -> float:
        """Epsilon of the recorded steps at ``delta``, by default at the delta of the header."""
        if delta is None:
            delta = self.delta
        if delta is None:
            raise ConfigurationError("delta=None: this ledger was opened without a delta; pass one")
        accountant = create_accountant(self.mechanism, self.neighboring)
        for event in self.events:
            accountant.count(event)
        return accountant.get_epsilon(delta)


def seal(record: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """The line of a record and its chain."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False)
    chain = hashlib.sha256((previous + body).encode()).hexdigest()[:32]
    return f'{body[:-1]},"chain":"{chain}"}}\n'.encode(), chain


def parse(content: bytes, path: str | os.PathLike[str]) -> tuple[LedgerRecord, int]:
    """The record, and the end of its last whole line."""
    lines = content.split(b"\n")[:-1]  # what follows the last line feed is torn
    header: dict[str, Any] = {}
    events: list[Event] = []
    chains: list[str] = []
    resumes: list[tuple[int, str]] = []
    chain, end = "", 0
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            del record["chain"]
            sealed, chain = seal(record, chain)
            if sealed != line + b"\n":
                raise ValueError("its checksum does not match")
            if number == 1:
                if (record.pop("ledger"), record.pop("version")) != ("dplip", VERSION):
                    raise ValueError(f"this is not a ledger of version {VERSION}")
                header = header_of(record)
                chains.append(chain)
            elif "resumed" in record:
                if record.keys() != {"resumed", "step"} or not isinstance(record["resumed"], str):
                    raise ValueError("a line of resuming has other entries")
                if type(record["step"]) is not int or record["step"] != len(events):
                    raise ValueError(f"step={record['step']} where {len(events)} belongs")
                resumes.append((len(events), record["resumed"]))
            else:
                if record["step"] != len(events) + 1:
                    raise ValueError(f"step={record['step']} where {len(events) + 1} belongs")
                events.append(event_of({name: record[name] for name in record if name not in ("step", "torn")}))
                if events[-1].sampling != events[0].sampling or header["neighboring"] not in events[-1].neighboring:
                    raise ValueError(f"{events[-1].sampling} batches do not belong there")
                chains.append(chain)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            raise LedgerError(
                f"{path}, line {number}: not as it was written ({problem!r}), so what was spent is unknown "
                "from there on; restore the file from a copy"
            ) from None
        end += len(sealed)
    if not header:
        raise LedgerError(f"{path}, line 1: no header, so this is not a ledger; pass the path of one")
    return LedgerRecord(**header, events=tuple(events), chains=tuple(chains), resumes=tuple(resumes)), end


def header_of(record: dict[str, Any]) -> dict[str, Any]:
    """The header, if each of its entries has the right type."""
    kinds = {"run": str, "mechanism": str, "neighboring": str, "delta": float | None, "facts": dict}
    if record.keys() != kinds.keys() or not all(isinstance(record[k], kind) for k, kind in kinds.items()):
        raise ValueError("its header has other entries than a ledger's")
    create_accountant(record["mechanism"], record["neighboring"])
    if record["delta"] is not None and not 0 < record["delta"] < 1:
        raise ValueError(f"delta={record['delta']}")
    return record
