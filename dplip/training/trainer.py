"""DPLipTrainer: it trains a model privately, and reports its epsilon and its certificates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from dplip.accounting import Budget, create_accountant
from dplip.accounting.budget import Fixed
from dplip.certificates import certified_accuracy, correct_radii
from dplip.constraints import project
from dplip.errors import BudgetExceededError, ConfigurationError
from dplip.losses import Loss
from dplip.noise.discrete import check_secure, noise_of
from dplip.records.run_folder import RunFolder
from dplip.runtime import group as processes
from dplip.runtime.device import device_of, resolve_device
from dplip.runtime.example import Example
from dplip.runtime.precision import full_precision, require_autocast
from dplip.runtime.processes import INDEPENDENT, OwnProcess
from dplip.sampling import SAMPLING
from dplip.sampling.loader import collated, example_shape
from dplip.training.calls import Calls, Select, Unpack, moved
from dplip.training.data_checks import check_data
from dplip.training.durable_run import DurableRun, write_run
from dplip.training.evaluation import RADII, Confusion, certified, evaluate, held_out, without_certificate
from dplip.training.feature_extractor import features, split_extractor
from dplip.training.mean_release import mean_release
from dplip.training.optimizer import DPLipOptimizer
from dplip.training.plan import Plan
from dplip.training.progress import Progress
from dplip.training.replicas import unwrapped
from dplip.training.schedules import Schedule, average_of, scheduler_of
from dplip.training.settings import PART, check_settings, noise_for, warn_of_delta


class DPLipTrainer(Fixed):
    """Trains a Lipschitz model with differential privacy and without clipping.

    Args:
        model: one whose operations all have a rule, its input bounded inside (``BallProjection``, ``Clamp``); or of any
            code, after ``dplip.nn.bound_gradients(model)``.
        loss: one of :mod:`dplip.losses`.
        optimizer: any torch optimizer over the model's trainable parameters.
        train_dataset: the protected data, map-style: pairs (input, target), or what ``unpack`` takes.
        eval_dataset: held-out data for :meth:`evaluate` and :meth:`certified_accuracy`; not protected.
        batch_size: the expected size of a batch; the size of the data: the full batch.
        sampling: ``"poisson"``, or ``"fixed_size"``: exactly ``batch_size`` examples in every step, drawn without
            replacement; with ``neighboring="replace_one"``, for which its cost is proved, and ``"rdp"``.
        epochs: passes over the data, of ``round(public_size / batch_size)`` steps each.
        target_epsilon: the budget, from which the noise follows; give this or ``noise_multiplier``.
        noise_multiplier: std of the noise per unit of sensitivity; 0: no noise, epsilon is infinite.
        target_delta: the delta of every epsilon.
        neighboring: ``"add_remove"`` or ``"replace_one"`` (twice the sensitivity).
        accountant: ``"rdp"``, ``"prv"`` or ``"pld"``.
        max_physical_batch_size: most examples at once in memory (None: 2,048); sum and noise are of the whole batch.
        output_dir: for ledger, report and weights; the ledger of an earlier run in it is renamed, never overwritten.
        seed: makes sampling and noise repeatable, and so not private: the report says "seeded".
        secure: exact discrete noise with the operating system's entropy, by OpenDP (the extra ``secure``); slower.
        progress: show the plan and a progress bar.
        public_size: the public size of the data; None: its length, which the report then names as public.
        scheduler: a scheduler, stepped after every private step, or a function that makes it of optimizer and steps.
        norm: 1, 2 or inf: the norm of the certificates in the report.
        ema_decay: keep an exponential moving average of the weights, and end with it (post-processing: free).
        project_every, distributed, trust_optimizer: as of :class:`DPLipOptimizer`; projected at the end, too.
        checkpoint_every: steps between two checkpoints in ``output_dir``; None: about twenty in a run.
        show_private_loss: show the loss on the private batch in the bar. **It leaks**: nothing accounts for it.
        precompute: run the leading layers that nothing is trained in once per example, and keep the results
            (:mod:`dplip.training.feature_extractor`).
        device: where the model is moved to; ``"auto"``: a CUDA device in place of the CPU, if there is one.
        autocast: ``torch.bfloat16`` or ``torch.float16``: train under it, where layers bound their own gradients.
        collate_fn: makes a batch of a list of items, such as :class:`dplip.data.Padding`; None: torch's default.
        unpack: from a batch to (args, kwargs, targets); None: see :class:`dplip.training.calls.Calls`.
        output: what of the model's output is for the loss: a name, a position or a function; None: the scores.

    Raises:
        ConfigurationError, UnboundedOperationError, UnboundedInputError: before anything is trained or spent.

    Guarantee: the weights after any number of steps are (``get_epsilon(delta)``, delta)-DP under ``neighboring``, for
    the present data; choices that were made by looking at it (hyper-parameters, epochs) are not accounted.
    """

    _FIXED = frozenset(
        "accountant autocast budget delta epochs loader loss model optimizer output_dir secure seed".split()
    )

    @processes.together
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
        scheduler: Schedule = None,
        norm: float = 2,
        ema_decay: float | None = None,
        project_every: int = 1,
        checkpoint_every: int | None = None,
        show_private_loss: bool = False,
        precompute: bool = False,
        device: str | torch.device = "auto",
        autocast: torch.dtype | None = None,
        distributed: str | processes.Group | None = None,
        trust_optimizer: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        unpack: Unpack | None = None,
        output: Select = None,
    ) -> None:
        self._process, model = OwnProcess(distributed), unwrapped(model)
        group = self._process.group
        check_settings(target_epsilon, noise_multiplier, epochs, sampling, norm, ema_decay, checkpoint_every)
        if secure:
            check_secure(accountant, seed, sampling)
        self.model, self.loss, self.epochs, self.delta = model, loss, epochs, target_delta
        self.budget = Budget(math.inf if target_epsilon is None else target_epsilon, target_delta)
        self.accountant = create_accountant(accountant, neighboring)
        same = {"epochs": epochs, "budget": self.budget, "accountant": accountant, "ema_decay": ema_decay}
        group.same(lambda: {**same, "written": output_dir is not None})  # else a folder of rank 1 alone stays empty
        self.eval_dataset, self.seed, self.secure, self.norm = eval_dataset, seed, secure, norm
        self.show_private_loss, self.autocast, self.progress = show_private_loss, autocast, progress and not group.rank
        model.to(resolve_device(device, model))  # in place: the optimizer's parameters stay the model's
        if autocast is not None:
            require_autocast(device_of(model).type, autocast)
        self._calls, self._collate = Calls(model, unpack, output), collated if collate_fn is None else collate_fn
        fits = model, loss, self._calls, self._collate
        example = self._example = check_data(train_dataset, "train_dataset", *fits)
        self.regression = loss.classes(1) is None
        if eval_dataset is not None:
            check_data(eval_dataset, "eval_dataset", *fits)
        # The trained part: the model, or what follows its feature extractor.
        self._trained = model
        if precompute:
            self._calls.require_plain("precompute=True")
            fixed, self._trained = split_extractor(model, loss, self.input_shape)
            train_dataset = features(fixed, train_dataset, self.progress, seed)
            example = Example.of_shape(example_shape(train_dataset))
        self.loader = SAMPLING[sampling](
            train_dataset,
            batch_size=batch_size,
            public_size=public_size,
            max_physical_batch_size=PART if max_physical_batch_size is None else max_physical_batch_size,
            seed=seed,
            collate_fn=collate_fn,
        )
        warn_of_delta(target_delta, self.loader.public_size)
        self._mean = mean_release(self._trained, example.shape)
        if noise_multiplier is None:
            noise_multiplier = noise_for(self.budget, self.loader, self.steps, accountant, neighboring, self._mean)
        self.optimizer = DPLipOptimizer(
            optimizer,
            model=self._trained,
            loss=loss,
            input_shape=example,
            noise_multiplier=noise_multiplier,
            batches=self.loader,
            neighboring=neighboring,
            charge=lambda event: self._run.charge_step(event),
            project_every=project_every,
            half_precision=autocast is not None,
            distributed=distributed,
            trust_optimizer=trust_optimizer,
            noise=noise_of(noise_multiplier, model, seed, secure),
        )
        self._average = average_of(model, ema_decay)
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._every = max(1, self.steps // 20) if checkpoint_every is None else checkpoint_every
        self._run = DurableRun(
            None if output_dir is None or group.rank else RunFolder(output_dir),
            accountant=self.accountant,
            budget=self.budget,
            model=model,
            optimizer=self.optimizer,
            average=self._average,
            loader=self.loader,
            mean=self._mean,
            steps=self.steps,
            seed=seed,
            secure=secure,
            group=group,
            independent=distributed == INDEPENDENT,
            autocast=autocast,
        )
        self.scheduler = scheduler

    @property
    def scheduler(self) -> LRScheduler | None:
        """The scheduler stepped after every private step; setting it checks and rehearses it."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, schedule: Schedule) -> None:
        self._scheduler = scheduler_of(schedule, self.optimizer.original, self.steps, self._run.done)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example; refused where that is not one tensor of floating-point numbers."""
        return self._example.single_shape()

    @property
    def steps(self) -> int:
        """The number of private steps that :meth:`fit` takes in all."""
        return self.epochs * self.loader.steps_per_epoch

    def plan(self) -> Plan:
        """What the whole run will spend; printed too, unless ``progress=False``. Nothing is spent."""
        plan = self._run.plan()
        if self.progress:
            tqdm.write(str(plan))
        return plan

    def fit(self, resume: bool = False, *, extra: Mapping[str, Any] | None = None) -> DPLipTrainer:
        """Take the planned steps, and write the report if there is an ``output_dir``; returns the trainer.

        Args:
            resume: continue the run in ``output_dir``, made by a trainer with the same plan, from its last checkpoint;
                begin one if there is none. Steps on the ledger that a crash took from the model stay spent, and are
                not taken again. A run of several processes cannot be resumed.
            extra: further entries of the report.

        Raises:
            BudgetExceededError: a further step would exceed the budget (as after a completed :meth:`fit`); the steps
                before it stand, and :meth:`get_epsilon` counts them.
            LedgerError, CheckpointError: with ``resume``, what is in the folder is damaged or of another plan.
        """
        self._process.require()
        if self._run.done >= self.steps:
            raise BudgetExceededError(
                f"steps={self.steps}: all planned steps have been taken, and none more has been run. "
                "Make a new trainer with a plan of its own to go on."
            )
        started = time.perf_counter()
        bar = None
        try:
            with self._process.group.agreed(lambda: "fit()"):
                self._run.open(resume, self.scheduler, self.progress)
            self._run.release_mean()
            bar = Progress(self.steps, self._run.done, self.progress)
            if self._run.done < self.steps:
                self._train(bar)
            if self._average is not None:
                self.model.load_state_dict(self._average.module.state_dict())
            project(self.model)
            self._run.seconds += time.perf_counter() - started
            started = time.perf_counter()
            if self.output_dir is not None:
                self.save(extra)
        finally:
            self.optimizer.leave()
            if bar is not None:
                bar.close()
            self._run.close()
            self._run.seconds += time.perf_counter() - started
        if self._process.group.rank == 0:
            self.optimizer.learned().warn()
        return self

    @full_precision()
    def _train(self, bar: Progress) -> None:
        self.model.train()
        device = device_of(self.model)
        while True:
            for batch in self.loader:
                call, targets = self._calls.of(batch)
                self.optimizer.zero_grad()
                with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                    value = self.loss(self._calls.run(self._trained, call, device), moved(targets, device))
                value.backward()
                whole = self.loader.complete
                self.optimizer.step()
                if whole:
                    self._after_step(bar, value, len(self._example.tensors(call)[0]))
                    if self._run.done >= self.steps:
                        return

    def get_epsilon(self, delta: float | None = None) -> float:
        """The epsilon spent so far, at ``delta`` (None: the target delta)."""
        return self.accountant.get_epsilon(self.delta if delta is None else delta)

    def evaluate(self, dataset: Dataset[Any] | None = None) -> dict[str, float]:
        """The mean loss, and the accuracy (or the mean squared error of a regression), on held-out data."""
        return self._measured(dataset)[0]

    def _measured(self, dataset: Dataset[Any] | None = None) -> tuple[dict[str, float], Confusion | None]:
        return evaluate(self.model, self.loss, held_out(dataset, self.eval_dataset), self._calls, self._collate)

    def certified_accuracy(
        self, radii: Sequence[float] = RADII, norm: float = 2, dataset: Dataset[Any] | None = None
    ) -> list[float]:
        """The fraction of held-out examples that are right and provably stay right, at each radius."""
        return certified_accuracy(self._correct_radii(norm, dataset), radii)

    def _correct_radii(self, norm: float, dataset: Dataset[Any] | None = None) -> Tensor:
        return correct_radii(self.model, held_out(dataset, self.eval_dataset), norm)

    def report(self, radii: Sequence[float] | None = None, norm: float | None = None) -> dict[str, Any]:
        """The report of the run, as plain data; by default for the trainer's norm and its usual radii."""
        why = without_certificate(self.regression, self.eval_dataset, self.optimizer.enforced)
        figures, confusion = ({}, None) if self.eval_dataset is None else self._measured()
        return {
            "privacy": self._run.spent(),
            "utility": {"accuracy": None, **figures, "confusion": confusion},
            "learned": self.optimizer.learned().plain(),
            "certified": certified(self._correct_radii, radii, self.norm if norm is None else norm, why),
            "input": {"shape": self._example.shape},
            **self._run.record(),
        }

    def save(self, extra: Mapping[str, Any] | None = None) -> Path:
        """Write ``report.json`` (with ``extra`` entries) and the weights to ``output_dir``."""
        if self.output_dir is None:
            raise ConfigurationError("output_dir=None: give the trainer a folder to save to.")
        if self._process.group.rank:
            return self.output_dir / "report.json"  # which the first process writes
        return write_run(self.output_dir, self.model, {**self.report(), **(extra or {})})

    def _after_step(self, bar: Progress, value: Tensor, examples: int) -> None:
        if self.scheduler is not None:
            self.scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        steps = self._run.done
        if steps % self._every == 0 or steps == self.steps:
            self._run.save()
        bar.step(self.get_epsilon, float(value.detach()) / max(examples, 1) if self.show_private_loss else None)
