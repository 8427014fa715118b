"""Rolled channels are a permutation of one example's entries, and rolls along the batch are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dplip
import dplip.nn as dn
from dplip.errors import UnboundedOperationError


def test_each_group_moves_by_one_place_and_the_last_stays():
    x = torch.arange(2 * 5 * 3 * 4, dtype=torch.float32).reshape(2, 5, 3, 4)
    y = dn.RollChannels()(x)
    for channel, (shift, axis) in enumerate([(1, 1), (-1, 1), (1, 2), (-1, 2), (0, 1)]):
        assert torch.equal(y[:, channel], x[:, channel].roll(shift, axis))
    few = dn.RollChannels()(x[:, :2])
    assert few.shape == (2, 2, 3, 4) and torch.equal(few[:, 0], x[:, 0].roll(1, 1))
    for row in range(2):
        assert torch.equal(y[row].flatten().sort().values, x[row].flatten())


@pytest.mark.parametrize(("along", "dim"), [((0,), 1), ((1,), 0), ((), 1), ((2, 2), 1), ((1,), 1)])
def test_axes_that_make_no_sense_are_refused(along, dim):
    with pytest.raises(dplip.ConfigurationError, match="along="):
        dn.RollChannels(along, dim)


def test_the_batch_axis_is_refused_by_its_number_from_the_end():
    with pytest.raises(UnboundedOperationError, match="dim=-4"):
        dplip.lipschitz(dn.RollChannels((2, -4)), (3, 4, 4))


class Rolled(nn.Module):
    def __init__(self, shifts: Any, dims: Any) -> None:
        super().__init__()
        self.arguments = (shifts,) if dims is None else (shifts, dims)

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, *self.arguments)


@pytest.mark.parametrize(("shifts", "dims"), [(1, 0), (1, -3), ((1, 1), (1, 0)), (1, None), ((1,), ())])
def test_a_roll_along_the_batch_is_refused(shifts, dims):
    with pytest.raises(UnboundedOperationError, match=r"not one axis of an example|without axes"):
        dplip.lipschitz(Rolled(shifts, dims), (3, 4))


def test_a_roll_along_other_axes_is_a_permutation():
    for shifts, dims in ((2, 1), (-1, -1), ((1, -2), (1, 2))):
        assert dplip.lipschitz(Rolled(shifts, dims), (3, 4)) == 1.0


def test_intervals_and_radii_go_through_rolls():
    torch.manual_seed(0)
    model = nn.Sequential(dn.RollChannels((2,)), Rolled(1, 2), nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.randn(20, 3, 4)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    plain[1].load_state_dict(model[3].state_dict())
    for norm in (1, 2, float("inf")):
        moved = torch.roll(dn.RollChannels((2,))(x), 1, 2)
        torch.testing.assert_close(
            dplip.certify(model, x, norm), dplip.certify(plain, moved, norm), rtol=1e-4, atol=1e-6
        )
