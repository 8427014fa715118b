"""The folder of one run: its ledger, its checkpoint, and how a run resumes from both.

The ledger decides what was spent, the checkpoint where the model stands. Steps on the ledger after the checkpoint stay
spent; the model lacks their updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dplip.accounting import Event
from dplip.errors import CheckpointError, ConfigurationError, LedgerError
from dplip.records.checkpoint import Checkpoint
from dplip.records.files import set_aside
from dplip.records.ledger import Ledger, begun


class RunFolder:
    """Owns ``ledger.jsonl`` and ``checkpoint.safetensors`` of one run.

    Attributes:
        going_on: whether the ledger that was opened last continues an earlier one.

    Raises:
        ConfigurationError: the folder cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as wrong:
            raise ConfigurationError(
                f"output_dir={path}: cannot be made ({wrong}). Name a folder to write to."
            ) from None
        self._ledger_path = self.path / "ledger.jsonl"
        self._checkpoint_path = self.path / "checkpoint.safetensors"
        self.going_on = self._unsaid = self._half = False
        self._ledger: Ledger | None = None
        self._run: str | None = None  # the run of this object, once its ledger was closed

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        assert self._ledger is not None
        return self._ledger

    def open(self, resume: bool, **header: Any) -> bool:
        """Open the ledger of this object's run if it has begun, with ``resume`` the one on disk, else a new one.

        What an earlier run left is renamed, never overwritten.

        Args:
            header: arguments of the ledger; see :class:`dplip.records.Ledger`.

        Returns:
            Whether another object began the run, so that all but the ledger must be restored.

        Raises:
            LedgerError: the ledger on disk is damaged, of another plan, or in use.
        """
        if self._half:
            raise LedgerError(
                f"{self._ledger_path}: going on with it failed in this trainer, whose weights may be partly of that "
                "run. Mend what the first error says, and go on with a new trainer."
            )
        from_disk = resume and self._run is None and begun(self._ledger_path)
        if resume and self._run is None and not from_disk and self._checkpoint_path.exists():
            raise LedgerError(
                f"{self._ledger_path}: the ledger of the checkpoint beside it is missing, so what was spent is "
                "unknown. Restore it."
            )
        self.going_on = from_disk or self._run is not None
        if not self.going_on:
            set_aside(self._checkpoint_path)  # first, so that no crash leaves a checkpoint without its ledger
            set_aside(self._ledger_path)
        self._ledger = Ledger(self._ledger_path, run=self._run, resume=self.going_on, **header)
        self._unsaid = self._half = from_disk
        return from_disk

    def restored(self) -> None:
        """Mark the run that :meth:`open` found on disk as fully restored; until then it cannot be opened again."""
        self._half = False

    @property
    def is_open(self) -> bool:
        return self._ledger is not None

    @property
    def resumes(self) -> list[str]:
        """The random numbers of the run's resumptions, from its ledger."""
        return [number for _, number in Ledger.read(self._ledger_path).resumes] if begun(self._ledger_path) else []

    def append(self, event: Event) -> None:
        """Put a step on disk before its noise is drawn; do nothing before a run has begun.

        Raises:
            LedgerError: the run has begun, and its ledger is closed: the step would be missing there.
        """
        if self._ledger is None and self._run is not None:
            raise LedgerError(
                f"{self._ledger_path}: it is closed, so a step taken by hand would be spent and not written. "
                "Call fit() to go on with this run, or make a trainer without output_dir for steps of your own."
            )
        if self._ledger is not None:
            if self._unsaid:  # this folder may be one of several resumed copies
                self._ledger.say_resumed()
                self._unsaid = False
            self._ledger.append(event)

    def save(self, **state: Any) -> None:
        """Write a checkpoint for the last step of the ledger; do nothing while no ledger is open."""
        if self._ledger is not None:
            Checkpoint(run=self._ledger.run, steps=self._ledger.steps, chain=self._ledger.chain, **state).write(
                self._checkpoint_path
            )

    def checkpoint(self, sampler: Mapping[str, Any]) -> Checkpoint | None:
        """The checkpoint of the open ledger; None: the run has none yet.

        Args:
            sampler: the public constants that it must have been made with.

        Raises:
            CheckpointError, LedgerError: the two do not belong together, or either is damaged.
        """
        if not self._checkpoint_path.exists():
            return None
        checkpoint = Checkpoint.read(self._checkpoint_path)
        record, done = Ledger.read(self._ledger_path), self.ledger.steps
        if checkpoint.run != record.run:
            raise CheckpointError(
                f"checkpoint.safetensors in {self.path}: it is of run {checkpoint.run!r}, and the ledger of run "
                f"{record.run!r}. Put the files of one run together."
            )
        if checkpoint.steps > done or record.chains[checkpoint.steps] != checkpoint.chain:
            raise LedgerError(
                f"{self._ledger_path}, line {min(checkpoint.steps, done) + 1}: the checkpoint was written after "
                f"{checkpoint.steps} steps that this ledger does not hold, so lines were lost. Restore the ledger."
            )
        if checkpoint.sampler != sampler:
            raise CheckpointError(f"sampler={checkpoint.sampler} in the checkpoint, {sampler} in the plan.")
        return checkpoint

    def close(self) -> None:
        """Close the ledger; the next :meth:`open` goes on with it."""
        if self._ledger is not None:
            self._run = self._ledger.run
            self._ledger.close()
            self._ledger = None
