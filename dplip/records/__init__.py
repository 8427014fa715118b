"""The files of a run: ledger, checkpoint and report, in one folder."""

from dplip.records.checkpoint import Checkpoint
from dplip.records.ledger import Ledger
from dplip.records.ledger_lines import LedgerRecord
from dplip.records.report import read_report, validate_report, versions, write_report

__all__ = ["Checkpoint", "Ledger", "LedgerRecord", "read_report", "validate_report", "versions", "write_report"]
