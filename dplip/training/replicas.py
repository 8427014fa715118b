"""The model inside a wrapper of torch that trains replicas of it, and whether the wrapper leaves gradients alone."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dplip.errors import ConfigurationError

_SYNC = "require_backward_grad_sync"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a ``DistributedDataParallel``, whose own sums are turned off; any other model itself.

    Private gradients are summed once a step, after all checks and before the noise, by the optimizer.

    Raises:
        ConfigurationError: the wrapper does with gradients what cannot be turned off.
    """
    if isinstance(model, DataParallel):
        raise ConfigurationError(
            "module=DataParallel: its replicas are new models at every pass, so that no bound is theirs. Give the "
            "model itself, and start a process for each device: torchrun, distributed='auto'."
        )
    if not isinstance(model, DistributedDataParallel):
        return model
    for option, on in _options(model).items():
        if on:
            raise ConfigurationError(
                f"module=DistributedDataParallel({option}): it changes the graph of the pass, or when and how "
                "gradients are summed, and a private step sums them itself, once, before its noise. Leave it out."
            )
    model.require_backward_grad_sync = model.require_forward_param_sync = False
    model.broadcast_buffers = False
    return model.module


def problem_of_wrapper() -> str | None:
    """Why the pass that runs now has gradients that its wrapper changes, as a sentence; None: it has none."""
    wrapper: Any = DistributedDataParallel._active_ddp_module
    if wrapper is None:
        return None
    if getattr(wrapper, _SYNC):
        return (
            "the model runs inside a DistributedDataParallel that sums gradients by itself, before they are checked. "
            "Give the wrapped one to make_private, module=DistributedDataParallel(model), which turns that off, and "
            "leave require_backward_grad_sync as it is; or call the model without it."
        )
    on = [option for option, on in _options(wrapper).items() if on]
    return (
        f"the model runs inside a DistributedDataParallel with {on[0]}, which changes gradients. Leave it out."
        if on
        else None
    )


def _options(wrapper: Any) -> dict[str, bool]:
    """What a wrapper does beside summing gradients, by the name under which a user has asked for it."""
    return {
        "find_unused_parameters=True": wrapper.find_unused_parameters,
        "static_graph=True": wrapper.static_graph,
        "gradient_as_bucket_view=True": wrapper.gradient_as_bucket_view,
        "mixed_precision=...": wrapper.mixed_precision is not None,
        "delay_all_reduce_named_params=...": bool(wrapper._delay_all_reduce_params),
        "register_comm_hook(...)": bool(wrapper._comm_hooks),
        "join()": wrapper._join_config.enable,
    }
