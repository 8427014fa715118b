"""What ``dplip.fix`` mends, what it says, and what it refuses before anything is changed."""

import copy

import pytest
import torch
from torch import nn

import dplip
import dplip.nn as dn
from dplip.errors import ConfigurationError


def model() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.Dropout(0.1, inplace=True)),
        *(nn.InstanceNorm2d(64, affine=True, track_running_stats=True), nn.Conv2d(64, 8, 1), nn.SyncBatchNorm(8)),
        *(nn.Flatten(), nn.LazyLinear(6), nn.BatchNorm1d(6)),
    )


def test_each_change_is_made_and_said():
    stock = model()
    stock.eval()(torch.randn(2, 3, 5, 5))
    stock.train()
    weight = stock[1].weight
    fixed, changes = dplip.fix(stock)
    assert fixed is stock
    assert changes == [
        "1: BatchNorm2d(64) -> GroupNorm(32, 64)",
        "2: ReLU(inplace=True) -> inplace=False",
        "3: Dropout(inplace=True) -> inplace=False",
        "4: InstanceNorm2d keeps no running statistics",
        "6: SyncBatchNorm(8) -> GroupNorm(4, 8)",
        "9: BatchNorm1d(6) -> GroupNorm(1, 6)",
    ]
    assert stock[1].weight is weight and stock[1].training
    assert dplip.fix(stock) == (stock, [])
    x = torch.randn(4, 3, 5, 5)
    for layer in stock:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    torch.testing.assert_close(stock(x)[:1], stock(x[:1]))
    dn.bound_gradients(stock)
    assert type(stock[1]) is dn.BoundedGroupNorm and type(stock[4]) is dn.BoundedInstanceNorm2d


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 16), (24, 8), (7, 1), (1, 1), (2, 1), (96, 32)])
def test_a_group_has_two_channels_or_more_where_there_are(channels, groups):
    fixed, _ = dplip.fix(nn.BatchNorm2d(channels))
    assert isinstance(fixed, nn.GroupNorm) and fixed.num_groups == groups


def test_a_batch_norm_that_is_the_model_comes_back_as_another():
    fixed, changes = dplip.fix(nn.BatchNorm1d(4, affine=False))
    assert isinstance(fixed, nn.GroupNorm) and fixed.weight is None
    assert changes == ["the model: BatchNorm1d(4) -> GroupNorm(1, 4)"]


def test_one_layer_at_two_places_is_one_layer_after():
    shared = nn.BatchNorm2d(4)
    fixed, changes = dplip.fix(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(fixed, nn.Sequential) and fixed[0] is fixed[2] and len(changes) == 1


def test_what_is_frozen_stays():
    trunk = nn.Sequential(nn.BatchNorm2d(4)).eval().requires_grad_(False)
    whole = nn.Sequential(trunk, dn.Frozen(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))))
    trunk.eval()
    before = copy.deepcopy(whole)
    assert dplip.fix(whole)[1] == [] and str(before) == str(whole)


class More(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


REFUSED = {
    "no weights yet": lambda: nn.LazyLinear(3),
    "parametrization": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
    "a hook": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "does more": lambda: More(3),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_cannot_mend_is_refused_and_nothing_is_changed(reason):
    whole = nn.Sequential(nn.BatchNorm2d(3), REFUSED[reason]())
    with pytest.raises(ConfigurationError, match=f"^1: .*{reason}"):
        dplip.fix(whole)
    assert type(whole[0]) is nn.BatchNorm2d


class Adapter(nn.Module):
    """A layer as peft's."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, 5).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_the_first_factor_is_frozen_with_orthonormal_rows_and_the_product_stays():
    whole, x = nn.Sequential(Adapter()), torch.randn(3, 6)
    before = whole(x)
    assert dn.freeze_lora_a(whole) == ["0.lora_A.default.weight"]
    torch.testing.assert_close(whole(x), before)
    a = whole[0].lora_A["default"].weight
    torch.testing.assert_close(a @ a.mT, torch.eye(2))
    assert not a.requires_grad and whole[0].lora_B["default"].weight.requires_grad
    dn.bound_gradients(whole)
    kinds = [type(m).__name__ for m in whole.modules() if isinstance(m, nn.Linear)]
    assert kinds == ["Linear", "Linear", "BoundedLinear"]
    other = nn.Sequential(Adapter())
    kept = other[0].lora_A["default"].weight.clone()
    dn.freeze_lora_a(other, orthonormal=False)
    assert torch.equal(kept, other[0].lora_A["default"].weight)
    with pytest.raises(ConfigurationError, match="no LoRA layer"):
        dn.freeze_lora_a(nn.Linear(3, 3))
