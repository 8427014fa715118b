"""A durable run: each event is checked against the budget, written to disk and counted; a run can be resumed."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from dplip.accounting import NEIGHBORING, Accountant, Budget, Event, create_accountant
from dplip.errors import CheckpointError, ConfigurationError, DPLipError, LedgerError
from dplip.noise import SecureNoise
from dplip.noise.allocation import split
from dplip.records import Checkpoint, validate_report, versions, write_report
from dplip.records.provenance import provenance
from dplip.records.report import remove
from dplip.records.run_folder import RunFolder
from dplip.records.spends import spends
from dplip.records.weights import write_weights
from dplip.runtime.group import Group
from dplip.runtime.processes import INDEPENDENT
from dplip.sampling.loader import SampledLoader
from dplip.training.mean_release import MeanRelease
from dplip.training.optimizer import DPLipOptimizer
from dplip.training.plan import Plan


class DurableRun:
    """The spending and the state of a run, in memory and in its folder.

    Args:
        folder: the folder of the ledger and the checkpoint; None: nothing is written to disk.
        accountant, budget: the accountant counts each event; the budget refuses those beyond it.
        model, optimizer, average, loader: the objects whose states a checkpoint holds.
        mean: the release before the first step; None: there is none.
        steps: number of steps of the whole run.
        seed: seed of the run; None: the run is not seeded.
        secure, autocast: the trainer's arguments, for the report.
        group: the processes that train together; the folder is the first one's.
        independent: whether this is one of several processes with releases of their own, for the report.

    Attributes:
        begun: what a resumed run started from, as a phrase; None: the run is not resumed.
        seconds: training time so far.
        history: public figures at each checkpoint: the step, the epsilon spent by then, the sensitivity and the noise.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        *,
        accountant: Accountant,
        budget: Budget,
        model: nn.Module,
        optimizer: DPLipOptimizer,
        average: AveragedModel | None,
        loader: SampledLoader,
        mean: MeanRelease | None,
        steps: int,
        seed: int | None,
        secure: bool,
        group: Group,
        independent: bool,
        autocast: torch.dtype | None,
    ) -> None:
        self._folder, self._accountant, self._budget = folder, accountant, budget
        self._mean, self._steps = mean, steps
        self._model, self._optimizer, self._average, self._loader = model, optimizer, average, loader
        self._seed, self._autocast, self._group = seed, autocast, group
        # The report says these of all steps, also of those that an earlier process took.
        self._marks = {
            "secure": secure,
            "trusted_optimizer": optimizer.trusted,
            "distributed": INDEPENDENT if independent else None,
        }
        self.begun: str | None = None
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def charge(self, event: Event) -> None:
        """Put an event on the ledger and count it, or refuse it because the budget does not allow it."""
        self._budget.require(self._accountant, event)
        if self._folder is not None:
            self._folder.append(event)
        self._accountant.count(event)

    def charge_step(self, event: Event) -> None:
        """Charge a step of ``fit`` or one taken by hand; its line is on the ledger before its noise is drawn."""
        if self._mean is not None and self._accountant.num_steps == 0:
            raise ConfigurationError(
                "step(): the mean of PrivateMean is not released yet, and fit() releases it before its first step. "
                "Call fit() first."
            )
        if self._folder is None or self._folder.is_open:
            self.charge(event)
            return
        self._budget.require(self._accountant, event)  # refuses before a file is made
        self.open(resume=False)
        try:
            self.charge(event)
        finally:
            self.close()

    def open(self, resume: bool, scheduler: LRScheduler | None = None, progress: bool = False) -> None:
        """Open the ledger; with ``resume``, continue the run in the folder.

        Raises:
            ConfigurationError: there is no folder to resume from.
            LedgerError, CheckpointError: a file in the folder is damaged, of another plan, or in use.
        """
        if resume and self._group.size > 1:
            raise ConfigurationError(
                f"resume=True: {self._group.size} processes train together, and such a run cannot be resumed. Begin "
                "one in another output_dir, whose epsilon adds to what this folder's ledger says; or resume in one "
                "process."
            )
        if self._folder is None:
            if resume:
                raise ConfigurationError("resume=True: there is no output_dir with a run to go on with. Give one.")
            return
        begun_before = self._folder.open(
            resume,
            mechanism=self._accountant.mechanism(),
            neighboring=self._optimizer.neighboring,
            delta=self._budget.delta,
            facts={
                "public_size": self._loader.public_size,
                "seeded": self._seed is not None,
                "steps": self._steps,
                "noise_multiplier": self._optimizer.noise_multiplier,
                "sample_rate": self._loader.sample_rate,
                "sampling": self._optimizer.event.sampling,
                **{name: value for name, value in self._marks.items() if value},
            },
        )
        if self._folder.going_on:  # the file decides: a crash may have come between a line and its count
            self._count_again(self._folder)
        if resume and not self._folder.going_on:
            self.begun = f"anew: there was no ledger in {self._folder.path} to go on with"
            if progress:
                tqdm.write(f"begun {self.begun}")
        if begun_before:
            self._restore(self._folder, scheduler)
            self._folder.restored()

    def close(self) -> None:
        """Close the ledger."""
        if self._folder is not None:
            self._folder.close()

    def save(self) -> None:
        """Write a checkpoint."""
        if self._folder is not None:
            self._note()
            self._folder.save(
                accountant=self._accountant.state_dict(),
                sampler=self._sampler(),
                model=self._model.state_dict(),
                optimizer=self._optimizer.state_dict()["state"],
                average=None if self._average is None else self._average.state_dict(),
                seconds=self.seconds,
                history=self.history,
            )

    def _note(self) -> None:
        """Add a line to the history; each of its numbers is public, being computed from noisy weights alone."""
        optimizer = self._optimizer
        try:
            sensitivities = optimizer.sensitivities()
            sizes = {name: optimizer.model.get_parameter(name).numel() for name in sensitivities}
            stds = split(sensitivities, sizes, optimizer.noise_multiplier)
        except DPLipError:  # weights that have diverged have no bound: that is for the next step to say
            return
        energy = sum(size * stds[name] ** 2 for name, size in sizes.items()) / sum(sizes.values())
        self.history.append(
            {
                "step": self.done,
                "epsilon": self._accountant.get_epsilon(self._budget.delta),
                "sensitivity": sensitivities.total,
                "noise": math.sqrt(energy) / optimizer.expected_batch_size,
            }
        )

    def spent(self) -> dict[str, Any]:
        """The privacy section of the report: what was spent, and under which assumptions."""
        event = self._optimizer.event
        return {
            "epsilon": self._accountant.get_epsilon(self._budget.delta),
            "delta": self._budget.delta,
            "accountant": self._accountant.mechanism(),
            "noise_multiplier": event.noise_multiplier,
            "sample_rate": event.sample_rate,
            "sampling": event.sampling,
            "steps": self.done,
            "releases": [asdict(event) for event in self.releases],
            "neighboring": self._optimizer.neighboring,
            "seeded": self._seed is not None,
            "public_size": self._loader.public_size,
            **self._marks,
            "autocast": None if self._autocast is None else str(self._autocast).removeprefix("torch."),
            "tuning": "not accounted",
        }

    def plan(self) -> Plan:
        """What the whole run will spend."""
        event, spent = self._optimizer.event, copy.deepcopy(self._accountant)
        for release in self.releases if spent.num_steps == 0 else []:
            spent.count(release)
        return Plan(
            noise_multiplier=event.noise_multiplier,
            sample_rate=event.sample_rate,
            steps=self._steps,
            expected_batch_size=self._loader.expected_batch_size,
            public_size=self._loader.public_size,
            epsilon=spent.epsilon_after(event, self._steps - self.done, self._budget.delta),
            delta=self._budget.delta,
            accountant=self._accountant.mechanism(),
            neighboring=self._optimizer.neighboring,
            sensitivities=self._optimizer.sensitivities(),
            event=event,
            releases=self.releases,
            trusted_optimizer=self._optimizer.trusted,
            begun=self.begun,
        )

    def release_mean(self) -> None:
        """Charge and release the mean that the model waits for, if nothing has been spent yet."""
        if self._mean is None or self._accountant.num_steps > 0:
            return
        for event in self.releases:
            self._group.in_turn(lambda: self.charge(event))  # noqa: B023
        optimizer, loader = self._optimizer, self._loader
        noise = SecureNoise(self._mean.layer.noise_multiplier, 1) if self._marks["secure"] else optimizer.noise
        self._mean.run(loader.dataset, noise, NEIGHBORING[optimizer.neighboring], loader.public_size, self._group)
        self.save()

    @property
    def releases(self) -> list[Event]:
        """The events before the first step."""
        return [] if self._mean is None else [self._mean.event(self._loader)]

    @property
    def done(self) -> int:
        """Steps taken so far."""
        return max(0, self._accountant.num_steps - len(self.releases))

    def record(self) -> dict[str, Any]:
        """The sections of the report about the run itself: its time, how it began, its history, and the versions."""
        resumes = [] if self._folder is None else self._folder.resumes
        return {
            "time": {"train_seconds": self.seconds, "seconds_per_step": self.seconds / max(self.done, 1)},
            "resume": {"begun": self.begun, "numbers": resumes},
            "history": self.history,
            "versions": versions(),
        }

    def _count_again(self, folder: RunFolder) -> None:
        again = create_accountant(self._accountant.mechanism(), self._optimizer.neighboring)
        for event in folder.ledger.history():
            again.count(event)
        if again.num_steps < self._accountant.num_steps:
            raise LedgerError(
                f"{folder.path}: its ledger holds {again.num_steps} steps, and this trainer has taken "
                f"{self._accountant.num_steps}, so lines were lost. Restore the ledger."
            )
        self._accountant.load_state_dict(again.state_dict())

    def _restore(self, folder: RunFolder, scheduler: LRScheduler | None) -> None:
        """Continue from the checkpoint of the open ledger, or without one from the first weights."""
        checkpoint, done = folder.checkpoint(self._sampler()), self.done
        if self._seed is not None:
            stream = another_stream(self._seed, folder.ledger.steps)
            self._loader.restart(stream)
            self._optimizer.noise.restart(stream + 1)
        if scheduler is not None:
            advance(scheduler, done)
        self.begun = f"again from the first weights: {done} steps are on the ledger, and there is no checkpoint"
        if checkpoint is not None:
            self.begun = f"from the checkpoint after step {checkpoint.steps} of {done} that are on the ledger"
            load(checkpoint, self._model, self._optimizer, self._average)
            self.seconds, self.history = checkpoint.seconds, checkpoint.history

    def _sampler(self) -> dict[str, Any]:
        loader = self._loader
        return {"sample_rate": loader.sample_rate, "public_size": loader.public_size, "steps": loader.steps_per_epoch}


def load(checkpoint: Checkpoint, model: nn.Module, optimizer: DPLipOptimizer, average: AveragedModel | None) -> None:
    """Load a checkpoint's states; the optimizer keeps its groups, and so its learning rates.

    Raises:
        CheckpointError: the states do not fit.
    """
    try:
        model.load_state_dict(checkpoint.model)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": checkpoint.optimizer, "param_groups": groups})
        if (average is None) != (checkpoint.average is None):
            raise ValueError("a moving average of the weights is only in one of the two")
        if average is not None and checkpoint.average is not None:
            average.load_state_dict(checkpoint.average)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise CheckpointError(
            f"checkpoint.safetensors of run {checkpoint.run!r}: it does not fit this trainer ({wrong}). Make it as the "
            "run was made."
        ) from None


def another_stream(seed: int, done: int) -> int:
    """The seed of a seeded run that is resumed after ``done`` steps, so that no draw is used twice."""
    return int.from_bytes(hashlib.sha256(f"{seed} after {done}".encode()).digest()[:12], "big")


def advance(scheduler: LRScheduler, steps: int) -> None:
    """Advance a schedule by a number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()


def write_run(folder: Path, model: nn.Module, report: Mapping[str, Any]) -> Path:
    """Write the weights of a finished run, and then its report, whose path it returns.

    The report also gets what was spent in the folder by all runs, and the digests of weights and settings.
    """
    path = folder / "report.json"
    validate_report(report)
    remove(path)  # first: a crash leaves no weights beside the report, and the epsilon, of others
    weights = write_weights(folder, model.state_dict())
    spent = spends(folder, float(report["privacy"]["delta"]))
    write_report(path, {**report, "spent": spent, "provenance": provenance(report, weights)})
    return path
