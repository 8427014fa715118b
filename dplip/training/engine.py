"""PrivacyEngine: it makes an optimizer and a loader private, with Opacus's keywords."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dplip.accounting import Budget, Event, create_accountant, get_noise_multiplier
from dplip.accounting.budget import Fixed
from dplip.errors import ConfigurationError
from dplip.losses import Loss
from dplip.noise.discrete import check_secure, noise_of
from dplip.runtime import group as processes
from dplip.runtime.example import Example
from dplip.sampling import PoissonLoader
from dplip.training.calls import Calls, Select, Unpack
from dplip.training.data_checks import check_data
from dplip.training.optimizer import DPLipOptimizer
from dplip.training.replicas import unwrapped
from dplip.validate import whole


class PrivacyEngine(Fixed):
    """Makes training private and keeps count of what was spent.

    Args:
        accountant: ``"rdp"``, ``"prv"`` or ``"pld"``.
        secure_mode: exact discrete noise with the operating system's entropy (the extra ``secure``).

    Guarantee: the releases of every step taken by the optimizers that it made are (``get_epsilon(delta)``, delta)-DP,
    under the neighbouring relation named when they were made.
    """

    _FIXED = frozenset({"accountant", "secure_mode"})

    def __init__(self, accountant: str = "rdp", *, secure_mode: bool = False) -> None:
        if secure_mode:
            check_secure(accountant, None)
        self.secure_mode = secure_mode
        self.accountant = create_accountant(accountant)

    @processes.together
    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any] | PoissonLoader,
        criterion: Loss | None = None,
        noise_multiplier: float,
        max_grad_norm: float | None = None,
        loss_reduction: str = "sum",
        poisson_sampling: bool = True,
        neighboring: str = "add_remove",
        public_size: int | None = None,
        max_physical_batch_size: int | None = None,
        input_shape: tuple[int, ...] | None = None,
        example: Any = None,
        unpack: Unpack | None = None,
        output: Select = None,
        seed: int | None = None,
        budget: Budget | None = None,
        half_precision: bool = False,
        distributed: str | processes.Group | None = None,
        trust_optimizer: bool = False,
        **unsupported: Any,
    ) -> tuple[nn.Module, DPLipOptimizer, PoissonLoader]:
        """Return ``(module, optimizer, data_loader)``, the last two private; the module is the same object.

        Args:
            module: a model whose operations all have a rule, with its input bounded inside (``BallProjection``); or a
                ``DistributedDataParallel`` around it, whose own sums are turned off.
            optimizer: any torch optimizer over its trainable parameters.
            data_loader: its data set and batch size are kept; its sampling is replaced by Poisson sampling.
            criterion: one of :mod:`dplip.losses`.
            noise_multiplier: std of the noise per unit of sensitivity.
            neighboring: the relation; the same for all that one engine makes.
            public_size: the public size of the data; None: its length, treated as public.
            max_physical_batch_size: most examples at once in memory.
            input_shape: shape of one example; None: that of the first item.
            example: what the module is called with for one example, without the batch axis: a tensor, a tuple of the
                positional arguments, a dictionary of the keyword arguments; None: as the first item has it (see
                :class:`dplip.training.calls.Calls`).
            unpack, output: how your loop calls the module with a batch, and what of its output it gives to the loss,
                for the checks made here; None: see the same.
            seed: makes sampling and noise repeatable, **and so not private**; for tests.
            budget: steps beyond it are refused.
            half_precision: allow ``torch.autocast`` (see :class:`DPLipOptimizer`).
            distributed: ``"auto"``, or a group of :func:`dplip.distributed.group`: train one model in all processes;
                ``"independent"``: allow to be one of several, each of which makes a release of its own; None: refuse.
            trust_optimizer: take an optimizer that is not of torch.optim, unchecked (see :class:`DPLipOptimizer`).

        Raises:
            ConfigurationError, UnboundedOperationError, UnboundedInputError: nothing has been changed then.
        """
        for keyword, value in unsupported.items():
            _refuse(f"{keyword}={value!r}", "there is no such choice to make without clipping", "Leave it out")
        if max_grad_norm is not None:
            _refuse(
                f"max_grad_norm={max_grad_norm}",
                "gradients are bounded by the layers, not clipped afterwards",
                f"Leave it out, and call dplip.nn.bound_gradients(model, radius={max_grad_norm}) first: every layer "
                "then holds each example's gradient to that radius",
            )
        if loss_reduction != "sum":
            _refuse(
                f"loss_reduction={loss_reduction!r}",
                "dividing by the batch's own size would leak it",
                "Use a loss of dplip.losses, which sums",
            )
        if not poisson_sampling:
            _refuse(
                "poisson_sampling=False",
                "a shuffled loader is not what is accounted for",
                "Leave it on; batch_size=len(dataset) gives the full batch",
            )
        if criterion is None:
            _refuse(
                "criterion=None",
                "noise is calibrated for the gradient of one loss",
                "Give criterion=dplip.losses.CrossEntropy(), or another loss of dplip, whose gradient is bounded",
            )
        model = unwrapped(module)
        loader = _poisson(data_loader, public_size, max_physical_batch_size, seed)
        if self.secure_mode:
            check_secure(self.accountant.mechanism(), seed)
        given = None if input_shape is None else Example.of_shape(input_shape)
        given = given if example is None else Example.of(example)
        calls = Calls(model, unpack, output)
        one = check_data(loader.dataset, "data_loader", model, criterion, calls, loader.collate, given)
        self.accountant.require(loader.event(noise_multiplier), neighboring)
        group = processes.group_of(distributed)
        group.same(lambda: {"budget": budget, "accountant": self.accountant.state_dict()})
        private = DPLipOptimizer(
            optimizer,
            model=model,
            loss=criterion,
            input_shape=one,
            noise_multiplier=noise_multiplier,
            batches=loader,
            neighboring=neighboring,
            charge=lambda event: self.charge(event, budget),
            half_precision=half_precision,
            distributed=distributed,
            trust_optimizer=trust_optimizer,
            noise=noise_of(noise_multiplier, model, seed, self.secure_mode),
        )
        self.accountant.relate(neighboring)
        return module, private, loader

    def make_private_with_epsilon(
        self,
        *,
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        data_loader: DataLoader[Any] | PoissonLoader,
        **arguments: Any,
    ) -> tuple[nn.Module, DPLipOptimizer, PoissonLoader]:
        """:meth:`make_private` with the noise that spends at most the target in ``epochs``; later steps are refused.

        Raises:
            ConfigurationError: also if this engine has already spent something.
        """
        if "noise_multiplier" in arguments:
            _refuse("noise_multiplier", "it follows from the target", "Leave it out")
        if self.accountant.num_steps:
            _refuse(
                f"num_steps={self.accountant.num_steps}",
                "the engine has already spent a part of some budget",
                "Make a new PrivacyEngine for a new run",
            )
        whole("epochs", epochs, least=1)
        loader = _poisson(
            data_loader,
            arguments.pop("public_size", None),
            arguments.pop("max_physical_batch_size", None),
            arguments.get("seed"),
        )
        sigma = get_noise_multiplier(
            target_epsilon=target_epsilon,
            target_delta=target_delta,
            sample_rate=loader.sample_rate,
            steps=epochs * loader.steps_per_epoch,
            accountant=self.accountant.mechanism(),
            neighboring=arguments.get("neighboring", "add_remove"),
        )
        budget = Budget(target_epsilon, target_delta)
        return self.make_private(data_loader=loader, noise_multiplier=sigma, budget=budget, **arguments)

    def charge(self, event: Event, budget: Budget | None = None) -> None:
        """Count one step, or refuse it because it would exceed the budget."""
        if budget is not None:
            budget.require(self.accountant, event)
        self.accountant.count(event)

    def get_epsilon(self, delta: float) -> float:
        """The epsilon spent so far, at this delta."""
        return self.accountant.get_epsilon(delta)


def _poisson(
    data_loader: DataLoader[Any] | PoissonLoader,
    public_size: int | None,
    max_physical_batch_size: int | None,
    seed: int | None,
) -> PoissonLoader:
    """The loader itself if it draws Poisson batches, else one of the same data and batch size that does."""
    if not isinstance(data_loader, PoissonLoader):
        return PoissonLoader.from_data_loader(
            data_loader, public_size=public_size, max_physical_batch_size=max_physical_batch_size, seed=seed
        )
    given = {"public_size": public_size, "max_physical_batch_size": max_physical_batch_size}
    for keyword, value in given.items():
        if value is not None:
            _refuse(f"{keyword}={value}", "the loader is a PoissonLoader already", "Give it to that loader")
    return data_loader


def _refuse(found: str, reason: str, remedy: str) -> NoReturn:
    raise ConfigurationError(f"{found}: {reason}. {remedy}.")
