"""Linear layers and convolutions whose weight is projected onto a constraint after each step."""

from __future__ import annotations

from torch import nn

from dplip.constraints import Orthogonal, SpectralBall, constrain


class OrthogonalLinear(nn.Linear):
    """A linear layer whose weight has orthonormal rows (columns, if it is tall), so that all singular values are 1."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        nn.init.orthogonal_(self.weight)
        constrain(self, "weight", Orthogonal())


class OrthogonalConv2d(nn.Conv2d):
    """An orthogonal map of the channels at every pixel, or of the patches of an image that do not overlap.

    Args:
        kernel_size: the side of a patch, which is also the stride: 1 for pixels.

    Guarantee: the map of a patch has orthonormal rows (columns, if it is tall), so the layer is 1-Lipschitz in l2.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size, bias=bias)
        nn.init.orthogonal_(self.weight)
        constrain(self, "weight", Orthogonal())


class SpectralLinear(nn.Linear):
    """A linear layer whose weight has spectral norm at most 1."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        nn.init.orthogonal_(self.weight)
        constrain(self, "weight", SpectralBall(1.0))


class SpectralConv2d(nn.Conv2d):
    """A convolution whose operator norm is at most 1, for inputs of every size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        nn.init.orthogonal_(self.weight)
        constrain(self, "weight", SpectralBall(1.0))
