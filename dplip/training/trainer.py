"""DPLipTrainer: a data set and a model in, a private model with its epsilon and its certificates out."""

from __future__ import annotations

import copy
import io
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from dplip.accounting import NEIGHBORING, Budget, Event, create_accountant, get_noise_multiplier
from dplip.accounting.budget import Fixed
from dplip.certificates import certified_accuracy, correct_radii, predictions
from dplip.certificates.radii import dual_of
from dplip.constraints import project
from dplip.errors import BudgetExceededError, ConfigurationError, LedgerError
from dplip.losses import Loss
from dplip.noise import GaussianNoise, SecureNoise
from dplip.noise.discrete import check_secure, secure_noise
from dplip.records import validate_report, versions, write_report
from dplip.records.checkpoint import write_state
from dplip.records.report import remove
from dplip.records.run_folder import RunFolder
from dplip.runtime.device import chosen, device_of
from dplip.runtime.mode import evaluation
from dplip.runtime.precision import full_precision, require_autocast
from dplip.runtime.processes import OwnProcess
from dplip.sampling import SAMPLING
from dplip.sampling.loader import example_shape
from dplip.training import feature_extractor as front
from dplip.training.data_checks import check_data
from dplip.training.durable_run import advance, another_stream, load
from dplip.training.mean_release import mean_release
from dplip.training.optimizer import DPLipOptimizer
from dplip.training.plan import Plan
from dplip.training.schedules import check_scheduler, rehearse

PART = 2048
"""Most examples at once, where nothing else is said."""

RADII = (0.0, 36 / 255, 72 / 255, 108 / 255)
"""The l2 radii, in raw pixels of [0, 1], at which certified accuracy is usually quoted."""

LINF_RADII = (0.0, 2 / 255, 8 / 255, 0.1, 0.3)
"""The same in l-infinity."""


class DPLipTrainer(Fixed):
    """Trains a Lipschitz model with differential privacy and without clipping.

    Args:
        model: a model that the algebra can walk, with its input bounded inside (``BallProjection``, ``Clamp``).
        loss: one of :mod:`dplip.losses`.
        optimizer: any torch optimizer over the model's trainable parameters.
        train_dataset: a map-style data set of (input, target) pairs; what is protected.
        eval_dataset: held-out data for :meth:`evaluate` and :meth:`certified_accuracy`; not protected.
        batch_size: the expected size of a batch; the size of the data: the full batch.
        sampling: ``"poisson"``, or ``"fixed_size"``: exactly ``batch_size`` examples in every step, drawn without
            replacement; with ``neighboring="replace_one"``, for which its cost is proved, and ``"rdp"``.
        epochs: passes over the data, of ``round(public_size / batch_size)`` steps each.
        target_epsilon: the budget, from which the noise follows; or else
        noise_multiplier: std of the noise per unit of sensitivity; 0: no noise, epsilon is infinite.
        target_delta: the delta of every epsilon.
        neighboring: ``"add_remove"`` or ``"replace_one"`` (twice the sensitivity).
        accountant: ``"rdp"``, ``"prv"`` or ``"pld"``.
        max_physical_batch_size: most examples at once in memory; the sum and the noise are those of the whole batch.
            None: 2,048, which keeps the rounding of sums small, and with it the noise.
        output_dir: where the ledger, the report and the weights are written; the ledger of an earlier run in it is
            renamed, never overwritten.
        seed: makes sampling and noise repeatable, and so not private: the report says "seeded".
        secure: exact discrete noise with the operating system's entropy, by OpenDP (the extra ``secure``); slower.
        progress: show the plan and a progress bar.
        public_size: the size of the data that is public; None: its length, which the report then names as public.
        scheduler: a learning-rate scheduler, stepped after every private step.
        norm: 1, 2 or inf: the norm of the certificates in the report.
        ema_decay: keep an exponential moving average of the weights, and end with it (post-processing: free).
        project_every: constrained weights are projected after every so many steps, and at the end (see
            :class:`DPLipOptimizer`).
        checkpoint_every: steps between two checkpoints in ``output_dir``; None: about twenty in a run.
        show_private_loss: show the loss on the private batch in the bar. **It leaks**: nothing accounts for it.
        precompute: run the leading layers that nothing is trained in once per example, and keep the results in memory
            (:mod:`dplip.training.feature_extractor`); bounds and training are those of the rest, all else sees the
            whole model.
        device: where the model is moved to; ``"auto"``: a CUDA device if there is one, unless it is on one already.
        autocast: ``torch.bfloat16`` or ``torch.float16``: take the training steps under ``torch.autocast``, for models
            whose trained layers bound their own gradients (:mod:`dplip.sensitivities.enforced`); None: all in float32.
        distributed: ``"independent"``: allow to be one of several processes (``torchrun``), each of which makes a
            release of its own, as the report then says; None: refuse.
        trust_optimizer: take an optimizer that is not of torch.optim, unchecked (see :class:`DPLipOptimizer`).

    Raises:
        ConfigurationError, UnboundedOperationError, UnboundedInputError: before anything is trained or spent.

    Guarantee: the weights after any number of steps are (``get_epsilon(delta)``, delta)-DP under ``neighboring``, for
    the present data; choices that were made by looking at it (hyper-parameters, epochs) are not accounted.
    """

    _FIXED = frozenset({"model", "loss", "loader", "optimizer", "accountant", "delta", "seed", "secure", "output_dir"})

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        optimizer: Optimizer,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None = None,
        batch_size: int = 4096,
        sampling: str = "poisson",
        epochs: int = 40,
        target_epsilon: float | None = None,
        target_delta: float = 1e-5,
        noise_multiplier: float | None = None,
        neighboring: str = "add_remove",
        accountant: str = "rdp",
        max_physical_batch_size: int | None = None,
        output_dir: str | Path | None = None,
        seed: int | None = None,
        secure: bool = False,
        progress: bool = True,
        public_size: int | None = None,
        scheduler: LRScheduler | None = None,
        norm: float = 2,
        ema_decay: float | None = None,
        project_every: int = 1,
        checkpoint_every: int | None = None,
        show_private_loss: bool = False,
        precompute: bool = False,
        device: str | torch.device = "auto",
        autocast: torch.dtype | None = None,
        distributed: str | None = None,
        trust_optimizer: bool = False,
    ) -> None:
        self._process, self._distributed = OwnProcess(distributed), distributed
        if (target_epsilon is None) == (noise_multiplier is None):
            raise ConfigurationError(
                f"target_epsilon={target_epsilon}, noise_multiplier={noise_multiplier}: give one of the two."
            )
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigurationError(f"ema_decay={ema_decay}: the decay of an average lies in (0, 1).")
        if not isinstance(epochs, int) or epochs < 1:
            raise ConfigurationError(f"epochs={epochs}: give a whole number of passes over the data.")
        if sampling not in SAMPLING:
            raise ConfigurationError(f"sampling={sampling!r}: choose one of {list(SAMPLING)}.")
        dual_of(norm)  # refuses what no certificate is in, before anything is spent
        if secure:
            check_secure(accountant, seed, sampling)
        if checkpoint_every is not None and (not isinstance(checkpoint_every, int) or checkpoint_every < 1):
            raise ConfigurationError(f"checkpoint_every={checkpoint_every}: give a whole number of steps, or None.")
        self.model, self.loss, self.epochs, self.delta = model, loss, epochs, target_delta
        self.budget = Budget(math.inf if target_epsilon is None else target_epsilon, target_delta)
        self.accountant = create_accountant(accountant, neighboring)
        self.eval_dataset, self.progress, self.seed, self.secure = eval_dataset, progress, seed, secure
        check_scheduler(scheduler, optimizer)
        self.scheduler, self.norm, self.show_private_loss = scheduler, norm, show_private_loss
        model.to(chosen(device, model))  # in place: the optimizer's parameters stay the model's
        self.autocast = autocast
        if autocast is not None:
            require_autocast(device_of(model).type, autocast)
        self._input_shape = check_data(model, loss, train_dataset, "train_dataset")
        self.regression = loss.classes(1) is None
        if eval_dataset is not None:
            check_data(model, loss, eval_dataset, "eval_dataset")
        # What the optimizer knows: the model, or what follows its fixed front end.
        self._trained, shape = model, self._input_shape
        if precompute:
            fixed, self._trained = front.split(model, loss, self._input_shape)
            train_dataset = front.features(fixed, train_dataset, progress, seed)
            shape = example_shape(train_dataset)
        self.loader = SAMPLING[sampling](
            train_dataset,
            batch_size=batch_size,
            public_size=public_size,
            max_physical_batch_size=PART if max_physical_batch_size is None else max_physical_batch_size,
            seed=seed,
        )
        if target_delta >= 1 / self.loader.public_size:
            warnings.warn(
                f"target_delta={target_delta:g}: with {self.loader.public_size} examples, so large a delta allows to "
                "publish one of them whole. Choose one well below 1 / examples.",
                stacklevel=2,
            )
        self._mean = mean_release(self._trained, shape)
        if noise_multiplier is None:
            noise_multiplier = get_noise_multiplier(
                target_epsilon=self.budget.epsilon,
                target_delta=target_delta,
                event=self.loader.event,
                steps=self.steps,
                accountant=accountant,
                neighboring=neighboring,
                before=self._releases,
            )
        self.optimizer = DPLipOptimizer(
            optimizer,
            model=self._trained,
            loss=loss,
            input_shape=shape,
            noise_multiplier=noise_multiplier,
            batches=self.loader,
            neighboring=neighboring,
            charge=self._charge_step,
            project_every=project_every,
            half_precision=autocast is not None,
            distributed=distributed,
            trust_optimizer=trust_optimizer,
            noise=secure_noise(noise_multiplier, model)
            if secure
            else GaussianNoise(None if seed is None else seed + 1),
        )
        rehearse(scheduler, self.steps)
        self._rehearsed = scheduler
        average = None if ema_decay is None else get_ema_multi_avg_fn(ema_decay)
        self._average = None if average is None else AveragedModel(model, multi_avg_fn=average)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._folder = None if output_dir is None else RunFolder(output_dir)
        self._every = max(1, self.steps // 20) if checkpoint_every is None else checkpoint_every
        self._seconds = 0.0
        self._begun: str | None = None  # from what, if it was to go on

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self._input_shape

    @property
    def steps(self) -> int:
        """The number of private steps that :meth:`fit` takes in all."""
        return self.epochs * self.loader.steps_per_epoch

    @property
    def _releases(self) -> list[Event]:
        """What is spent before the first step."""
        return [] if self._mean is None else [self.loader.event_of_all(self._mean.layer.noise_multiplier)]

    @property
    def _done(self) -> int:
        """Steps taken so far."""
        return max(0, self.accountant.num_steps - len(self._releases))

    def plan(self) -> Plan:
        """What the whole run will spend; printed too, unless ``progress=False``. Nothing is spent."""
        event = self.optimizer.event
        spent = copy.deepcopy(self.accountant)
        for release in self._releases if spent.num_steps == 0 else []:
            spent.count(release)
        plan = Plan(
            noise_multiplier=event.noise_multiplier,
            sample_rate=event.sample_rate,
            steps=self.steps,
            expected_batch_size=self.loader.expected_batch_size,
            public_size=self.loader.public_size,
            epsilon=spent.epsilon_after(event, self.steps - self._done, self.delta),
            delta=self.delta,
            accountant=self.accountant.mechanism(),
            neighboring=self.optimizer.neighboring,
            sensitivities=self.optimizer.sensitivities(),
            event=event,
            releases=self._releases,
            trusted_optimizer=self.optimizer.trusted,
            begun=self._begun,
        )
        if self.progress:
            tqdm.write(str(plan))
        return plan

    def fit(self, resume: bool = False, *, extra: Mapping[str, Any] | None = None) -> DPLipTrainer:
        """Take the planned steps, and write the report if there is an ``output_dir``; returns the trainer.

        Args:
            resume: go on with the run whose ledger is in ``output_dir``, made by a trainer with the same plan, from
                its last checkpoint; begin it if there is none. Steps that a crash took from the model, but that are
                on the ledger, stay spent and are not taken again.
            extra: further entries of the report.

        Raises:
            BudgetExceededError: a further step would exceed the budget (as after a completed :meth:`fit`); the steps
                before it stand, and :meth:`get_epsilon` counts them.
            LedgerError, CheckpointError: with ``resume``, what is in the folder is damaged or of another plan.
        """
        self._process.require()
        if self._done >= self.steps:
            raise BudgetExceededError(
                f"steps={self.steps}: all planned steps have been taken, and none more has been run. "
                "Make a new trainer with a plan of its own to go on."
            )
        new = self.scheduler if self.scheduler is not self._rehearsed else None  # it was set after the trainer was made
        if isinstance(new, LRScheduler) and new.optimizer is self.optimizer.original:
            rehearse(new, self.steps - self._done)
            self._rehearsed = new
        started = time.perf_counter()
        bar = None
        try:
            self._open_ledger(resume)
            if self._mean is not None and self.accountant.num_steps == 0:
                self._release_mean()
            done = self._done
            bar = tqdm(total=self.steps, initial=done, disable=not self.progress, unit="step")
            if done < self.steps:
                self._train(bar)
            if self._average is not None:
                self.model.load_state_dict(self._average.module.state_dict())
            project(self.model)
            self._seconds += time.perf_counter() - started
            started = time.perf_counter()
            if self.output_dir is not None:
                self.save(extra)
        finally:
            if bar is not None:
                bar.close()
            self._close_ledger()
            self._seconds += time.perf_counter() - started
        return self

    @full_precision()
    def _train(self, bar: tqdm[Any]) -> None:
        self.model.train()
        device = device_of(self.model)
        while True:
            for x, y in self.loader:
                self.optimizer.zero_grad()
                with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                    value = self.loss(self._trained(x.to(device)), y.to(device))
                value.backward()
                whole = self.loader.complete
                self.optimizer.step()
                if whole:
                    self._after_step(bar, value, len(x))
                    if self._done >= self.steps:
                        return

    def _release_mean(self) -> None:
        assert self._mean is not None
        for event in self._releases:
            self._charge(event)
        sigma = self._mean.layer.noise_multiplier
        noise = SecureNoise(sigma, 1) if self.secure else self.optimizer.noise
        self._mean.run(self.loader.dataset, noise, NEIGHBORING[self.optimizer.neighboring], self.loader.public_size)
        self._checkpoint()

    def get_epsilon(self, delta: float | None = None) -> float:
        """The epsilon spent so far, at ``delta`` (None: the target delta)."""
        return self.accountant.get_epsilon(self.delta if delta is None else delta)

    @torch.no_grad()
    def evaluate(self, dataset: Dataset[Any] | None = None) -> dict[str, float]:
        """The mean loss, and the accuracy (or the mean squared error of a regression), on held-out data."""
        with evaluation(self.model):
            device = device_of(self.model)
            total = right = square = 0.0
            count = 0
            for x, y in DataLoader(self._held_out(dataset), batch_size=2048):
                z, y = self.model(x.to(device)), y.to(device)
                total += float(self.loss(z, y))
                count += len(x)
                if self.regression:
                    square += float((z - y.reshape(z.shape)).double().square().sum())
                else:
                    right += float((predictions(z) == y.reshape(len(y))).sum())
        scores = {"mse": square / count} if self.regression else {"accuracy": right / count}
        return {**scores, "loss": total / count}

    def certified_accuracy(
        self, radii: Sequence[float] = RADII, norm: float = 2, dataset: Dataset[Any] | None = None
    ) -> list[float]:
        """The fraction of held-out examples that are right and provably stay right, at each radius."""
        return certified_accuracy(correct_radii(self.model, self._held_out(dataset), norm), radii)

    def report(self, radii: Sequence[float] | None = None, norm: float | None = None) -> dict[str, Any]:
        """What was spent and what was reached, as plain data; None: the trainer's norm, and its usual radii."""
        norm = self.norm if norm is None else norm
        if radii is None:
            radii = LINF_RADII if math.isinf(norm) else RADII
        event = self.optimizer.event
        held_out = self.eval_dataset is not None
        certified = held_out and not self.regression
        steps = self._done
        return {
            "privacy": {
                "epsilon": self.get_epsilon(),
                "delta": self.delta,
                "accountant": self.accountant.mechanism(),
                "noise_multiplier": event.noise_multiplier,
                "sample_rate": event.sample_rate,
                "sampling": event.sampling,
                "steps": steps,
                "releases": [asdict(event) for event in self._releases],
                "neighboring": self.optimizer.neighboring,
                "seeded": self.seed is not None,
                "secure": self.secure,
                "distributed": self._distributed,
                "trusted_optimizer": self.optimizer.trusted,
                "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
                "public_size": self.loader.public_size,
                "tuning": "not accounted",
            },
            "utility": {"accuracy": None, **(self.evaluate() if held_out else {})},
            "certified": {
                "norm": "inf" if math.isinf(norm) else norm,
                "radii": list(radii) if certified else [],
                "accuracy": self.certified_accuracy(radii, norm) if certified else [],
            },
            "time": {"train_seconds": self._seconds, "seconds_per_step": self._seconds / max(steps, 1)},
            "resume": {"begun": self._begun, "numbers": [] if self._folder is None else self._folder.resumes},
            "versions": versions(),
        }

    def save(self, extra: Mapping[str, Any] | None = None) -> Path:
        """Write ``report.json`` (with ``extra`` entries) and ``model.pt`` (the ``state_dict``) to ``output_dir``."""
        if self.output_dir is None:
            raise ConfigurationError("output_dir=None: give the trainer a folder to save to.")
        weights, path = io.BytesIO(), self.output_dir / "report.json"
        torch.save(self.model.state_dict(), weights)
        report = {**self.report(), **(extra or {})}
        validate_report(report)
        remove(path)  # first: a crash leaves no weights beside the report, and the epsilon, of others
        write_state(self.output_dir / "model.pt", weights.getvalue())
        write_report(path, report)
        return path

    def _charge_step(self, event: Event) -> None:
        """Of a step by hand too: its line is on the ledger before its noise is drawn."""
        if self._mean is not None and self.accountant.num_steps == 0:
            raise ConfigurationError(
                "step(): the mean of PrivateMean is not released yet, and fit() releases it before its first step. "
                "Call fit() first."
            )
        if self._folder is None or self._folder.is_open:
            self._charge(event)
            return
        self.budget.require(self.accountant, event)  # before a file is made
        self._open_ledger(resume=False)
        try:
            self._charge(event)
        finally:
            self._close_ledger()

    def _charge(self, event: Event) -> None:
        self.budget.require(self.accountant, event)
        if self._folder is not None:
            self._folder.append(event)
        self.accountant.count(event)

    def _open_ledger(self, resume: bool) -> None:
        if self._folder is None:
            if resume:
                raise ConfigurationError("resume=True: there is no output_dir with a run to go on with. Give one.")
            return
        # What the report says of all steps, those of an earlier process too.
        marks = {
            "secure": self.secure,
            "trusted_optimizer": self.optimizer.trusted,
            "distributed": self._distributed,
        }
        begun_before = self._folder.open(
            resume,
            mechanism=self.accountant.mechanism(),
            neighboring=self.optimizer.neighboring,
            delta=self.delta,
            facts={
                "public_size": self.loader.public_size,
                "seeded": self.seed is not None,
                "steps": self.steps,
                "noise_multiplier": self.optimizer.noise_multiplier,
                "sample_rate": self.loader.sample_rate,
                "sampling": self.optimizer.event.sampling,
                **{name: value for name, value in marks.items() if value},
            },
        )
        if self._folder.going_on:  # the file knows best: a crash may have come between a line and its count
            again = create_accountant(self.accountant.mechanism(), self.optimizer.neighboring)
            for event in self._folder.ledger.history():
                again.count(event)
            if again.num_steps < self.accountant.num_steps:
                raise LedgerError(
                    f"{self.output_dir}: its ledger holds {again.num_steps} steps, and this trainer has taken "
                    f"{self.accountant.num_steps}, so lines were lost. Restore the ledger."
                )
            vars(self)["accountant"] = again
        if resume and not self._folder.going_on:
            self._begun = f"anew: there was no ledger in {self.output_dir} to go on with"
            if self.progress:
                tqdm.write(f"begun {self._begun}")
        if begun_before:
            self._restore(self._folder)
            self._folder.restored()

    def _restore(self, folder: RunFolder) -> None:
        """Go on from the checkpoint of the open ledger, or from the first weights."""
        checkpoint, done = folder.checkpoint(self._sampler()), self._done
        if self.seed is not None:
            stream = another_stream(self.seed, folder.ledger.steps)
            self.loader.restart(stream)
            self.optimizer.noise.restart(stream + 1)
        if self.scheduler is not None:
            advance(self.scheduler, done)
        self._begun = f"again from the first weights: {done} steps are on the ledger, and there is no checkpoint"
        if checkpoint is not None:
            self._begun = f"from the checkpoint after step {checkpoint.steps} of {done} that are on the ledger"
            load(checkpoint, self.model, self.optimizer, self._average)
            self._seconds = checkpoint.seconds

    def _checkpoint(self) -> None:
        if self._folder is not None:
            self._folder.save(
                accountant=self.accountant.state_dict(),
                sampler=self._sampler(),
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict()["state"],
                average=None if self._average is None else self._average.state_dict(),
                seconds=self._seconds,
            )

    def _sampler(self) -> dict[str, Any]:
        loader = self.loader
        return {"sample_rate": loader.sample_rate, "public_size": loader.public_size, "steps": loader.steps_per_epoch}

    def _close_ledger(self) -> None:
        if self._folder is not None:
            self._folder.close()

    def _after_step(self, bar: tqdm[Any], value: Tensor, examples: int) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        steps = self._done
        if steps % self._every == 0 or steps == self.steps:
            self._checkpoint()
        bar.update()
        if self.progress and (bar.n % 10 == 0 or bar.n == self.steps):
            shown = {"epsilon": f"{self.get_epsilon():.3f}"}
            if self.show_private_loss:
                shown["PRIVATE loss (leaks)"] = f"{float(value.detach()) / max(examples, 1):.4f}"
            bar.set_postfix(shown, refresh=False)

    def _held_out(self, dataset: Dataset[Any] | None) -> Dataset[Any]:
        dataset = self.eval_dataset if dataset is None else dataset
        if dataset is None:
            raise ConfigurationError("eval_dataset=None: give the trainer held-out data, or pass a data set here.")
        return dataset
