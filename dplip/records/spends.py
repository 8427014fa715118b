"""What was spent in the folder of a run: by its own ledger, and by those of earlier runs that are kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dplip.accounting import Accountant, create_accountant
from dplip.errors import LedgerError
from dplip.records.ledger import Ledger, begun
from dplip.records.ledger_lines import LedgerRecord


def spends(folder: str | Path, delta: float) -> dict[str, Any]:
    """Every run whose ledger is in a folder, and what they spent together.

    Returns:
        ``runs``: what each spent, the earliest first; ``epsilon``: of all together at ``delta``, by ``accountant``, or
        None if that is unknown, for the reason ``problem``.

    Guarantee: if the runs used the same data, whatever they released is (epsilon, delta)-DP together.
    """
    found = read_ledgers(folder)
    runs = [_run(name, record, delta) for name, record in found]
    together = composed(found)
    known = isinstance(together, Accountant)
    return {
        "runs": runs,
        "delta": delta,
        "epsilon": together.get_epsilon(delta) if isinstance(together, Accountant) else None,
        "accountant": together.mechanism() if isinstance(together, Accountant) else None,
        "problem": None if known else str(together),
    }


def read_ledgers(folder: str | Path) -> list[tuple[str, LedgerRecord | LedgerError]]:
    """The file and the content of each ledger that has begun, the earliest first; an error where one is damaged."""
    paths = [path for path in Path(folder).glob("ledger*.jsonl") if begun(path)]
    found: list[tuple[str, LedgerRecord | LedgerError]] = []
    for path in sorted(paths, key=_age):
        try:
            found.append((path.name, Ledger.read(path)))
        except LedgerError as damaged:  # reports name the file, and not where it is on this machine
            found.append((path.name, LedgerError(str(damaged).replace(str(path), path.name))))
    return found


def composed(ledgers: list[tuple[str, LedgerRecord | LedgerError]]) -> Accountant | str:
    """An accountant of the events of all ledgers, or the reason why there is none."""
    records = []
    for _, record in ledgers:
        if isinstance(record, LedgerError):
            return str(record)
        records.append(record)
    relations = {record.neighboring for record in records}
    if not relations:
        return "there is no ledger"
    if len(relations) != 1:
        return f"the ledgers are for the relations {sorted(relations)}, whose epsilons do not add up"
    mechanisms = {record.mechanism for record in records}
    # RDP has a theorem for every event, so it composes runs of different accountants.
    accountant = create_accountant(mechanisms.pop() if len(mechanisms) == 1 else "rdp", relations.pop())
    for event in (event for record in records for event in record.events):
        accountant.count(event)
    return accountant


def _age(path: Path) -> tuple[bool, int, str]:
    """A key that sorts ``ledger-1.jsonl`` before ``ledger-2.jsonl``, and ``ledger.jsonl`` last."""
    number = path.stem.partition("-")[2]
    return path.stem == "ledger", int(number) if number.isdecimal() else 0, path.name


def _run(name: str, record: LedgerRecord | LedgerError, delta: float) -> dict[str, Any]:
    if isinstance(record, LedgerError):
        return {"ledger": name, "problem": str(record)}
    return {
        "ledger": name,
        "run": record.run,
        "events": len(record.events),
        "epsilon": record.epsilon(delta),
        "accountant": record.mechanism,
        "neighboring": record.neighboring,
        "seeded": bool(record.facts.get("seeded")),
        "trusted_optimizer": record.facts.get("trusted_optimizer"),
        "distributed": record.facts.get("distributed"),
        "resumed": len(record.resumes),
    }
