"""The mean of a model's outputs over several views of one example."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from dplip.errors import ConfigurationError
from dplip.norms import Norms
from dplip.rules import Pullback, rule
from dplip.rules.shape import example_axis, moved


class Mirror(nn.Module):
    """Reverse the last axis, an image's width.

    Shape: any; unchanged.

    Guarantee: a permutation of the entries, so 1-Lipschitz in every norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1)


@rule(Mirror)
def mirror(module: Mirror, x: Norms) -> tuple[Norms, Pullback]:
    example_axis(-1, x)  # refuses an example without an axis, where the last axis is the batch
    return moved(x, x.shape)


class MeanOverViews(nn.Module):
    """The mean of a model's outputs over fixed views of the example: augmentation that costs no privacy.

    All views of an example are part of its one contribution to the sum of gradients. The weights are shared, and the
    cotangent of each view is divided by the number of views, so the views' gradient bounds add up to the bound of one
    view. (A bounded layer inside, such as ``BoundedLinear``, bounds each view's gradient: its radius counts once a
    view.) The function is the same in training and in use, and invariant under a view that is its own inverse.

    Args:
        model: the model that is applied to every view; its layers treat each example by itself.
        views: fixed maps of one example, without randomness, such as ``nn.Identity()`` and :class:`Mirror`.

    Guarantee: for views that are 1-Lipschitz in a norm, the Lipschitz constant in that norm is at most the model's.
    Source: augmentation multiplicity, De et al., 2022, arXiv 2204.13650; here outputs are averaged, not losses.
    """

    def __init__(self, model: nn.Module, views: Iterable[nn.Module]) -> None:
        super().__init__()
        self.model, self.views = model, nn.ModuleList(views)
        if not len(self.views):
            raise ConfigurationError("views: there are none. Give at least one, such as nn.Identity().")

    def forward(self, x: Tensor) -> Tensor:
        total = self.model(self.views[0](x))
        for view in list(self.views)[1:]:
            total = total + self.model(view(x))
        return total / len(self.views)
