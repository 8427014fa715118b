"""The noisy mean of the inputs, which a run releases before its first step for the model to subtract."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from dplip.accounting import Event
from dplip.errors import ConfigurationError
from dplip.nn import PrivateMean
from dplip.nn.gradient_ball import project_rows
from dplip.noise import GaussianNoise
from dplip.runtime.group import Group
from dplip.runtime.mode import evaluation
from dplip.runtime.secret import lent_to_readers
from dplip.sampling.loader import SampledLoader
from dplip.training.feature_extractor import fixed_shapes


@dataclass(frozen=True)
class MeanRelease:
    """The release that a model's :class:`dplip.nn.PrivateMean` waits for.

    Attributes:
        before: the layers before the mean, a fixed function of one example.
        layer: the layer that the mean is written to.
    """

    before: nn.Sequential
    layer: PrivateMean

    def event(self, loader: SampledLoader) -> Event:
        """The event of the release, on all data of a loader."""
        return loader.event_of_all(self.layer.noise_multiplier)

    @torch.no_grad()
    def run(self, dataset: Dataset[Any], noise: GaussianNoise, apart: float, count: int, group: Group) -> None:
        """Sum the inputs, add noise and fill the layer; :meth:`event` must be charged before.

        Args:
            dataset: map-style data set of (input, target) pairs.
            noise: the source of the noise, and of the data set's draws from global generators: under a known seed one
                example less would change the draws of all that follow it.
            apart: how far two neighbouring sums lie apart, in units of one example's bound.
            count: the public size of the data, which the sum is divided by.
            group: the processes that sum together, each its share of the same data.

        Guarantee: the Gaussian mechanism of the layer's noise multiplier on all of the data. Proof: what an example
        adds is a function of that example alone, of norm at most ``radius``, so two neighbouring sums lie at most
        ``apart * radius`` apart; the rounding of the float64 sum, below ``2^-53`` of its largest possible value for
        each of its additions, is within the slack for less than 2^29 examples.
        """
        layer = self.layer
        before = copy.deepcopy(self.before).double()  # in float32 an example's rounding may depend on its neighbours
        total = torch.zeros_like(layer.mean, dtype=torch.float64)
        size: int = len(dataset)  # type: ignore[arg-type]
        share = Subset(dataset, range(group.rank, size, group.size))
        with evaluation(before), lent_to_readers(noise.masks):
            for x, _ in DataLoader(share, batch_size=256):
                values = before(x.to(total.device, torch.float64))
                total += project_rows(values, layer.radius).sum(0)
        std = layer.noise_multiplier * layer.radius * apart * (1 + count * 2.0**-24)
        for _, owned in group.summed([total]):
            noise.add_to_part_(owned, std, total.numel())
        layer.mean.copy_(total / count)


def mean_release(model: nn.Module, input_shape: tuple[int, ...] | None) -> MeanRelease | None:
    """The release that a model waits for; None: it has no :class:`dplip.nn.PrivateMean`.

    Raises:
        ConfigurationError: the model has several, or one whose inputs would change in training: it must be in the
            model's own ``Sequential``, behind layers without parameters and state.
    """
    layers = [m for m in model.modules() if isinstance(m, PrivateMean)]
    if not layers:
        return None
    own = list(model) if type(model) is nn.Sequential else []
    if len(layers) == 1 and layers[0] in own and input_shape is not None:
        place = own.index(layers[0])
        before = cast(nn.Sequential, cast(nn.Sequential, model)[:place])
        if len(fixed_shapes(before, input_shape)) == place + 1:
            return MeanRelease(before, layers[0])
    raise ConfigurationError(
        f"PrivateMean: the model has {len(layers)} of them, or one that is behind something trained or not in the "
        "model's own Sequential. Make the model a Sequential with one, behind layers that nothing is trained in."
    )
