"""Models that mix by what hangs on their modules: hooks, wrapped calls, parametrizations, other kinds of gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import VECTOR, Case, Of
from helpers.zoo.mixing_late import enlarge
from torch import Tensor, nn
from torch.nn.utils import parametrize

MODULES: dict[str, Case] = {}


def plain(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).tanh())


def mixes(change: Any) -> Any:
    """A plain model that a function has changed."""

    def model() -> nn.Module:
        made = Of(plain, **VECTOR.parts())
        change(made)
        return made

    MODULES[change.__name__.replace("_", " ")] = Case(model)
    return change


def centred(h: Tensor) -> Tensor:
    return h - h.mean(0)


@mixes
def a_forward_hook(m: Any) -> None:
    m.a.register_forward_hook(lambda module, args, out: centred(out))


@mixes
def a_forward_pre_hook(m: Any) -> None:
    m.head.register_forward_pre_hook(lambda module, args: (centred(args[0]),))


@mixes
def a_hook_of_the_whole_model(m: Any) -> None:
    m.register_forward_hook(lambda module, args, out: out.flip(0))


@mixes
def a_full_backward_hook(m: Any) -> None:
    m.head.register_full_backward_hook(lambda module, back, into: tuple(centred(g) for g in back))


@mixes
def a_full_backward_pre_hook(m: Any) -> None:
    m.head.register_full_backward_pre_hook(lambda module, into: tuple(g / len(g) for g in into))


@mixes
def a_hook_of_a_parameter_normalises(m: Any) -> None:
    m.a.weight.register_hook(lambda g: g / (g.norm() + 1e-9))


@mixes
def a_hook_of_a_parameter_enlarges(m: Any) -> None:
    m.a.weight.register_hook(lambda g: 100 * g)


@mixes
def a_hook_after_accumulation_enlarges(m: Any) -> None:
    m.a.weight.register_post_accumulate_grad_hook(enlarge)


@mixes
def a_parametrization_follows_the_data(m: Any) -> None:
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * scale[0]

    scale = [torch.tensor(1.0)]
    parametrize.register_parametrization(m.a, "weight", Scaled())
    m.register_forward_pre_hook(lambda module, args: scale.__setitem__(0, 1 / (1 + args[0].abs().mean())))


@mixes
def a_wrapped_forward_of_an_instance(m: Any) -> None:
    inner = m.forward
    m.forward = lambda x: centred(inner(x))


@mixes
def a_wrapped_forward_of_a_layer(m: Any) -> None:
    inner = m.a.forward
    m.a.forward = lambda x: centred(inner(x))


class Normalising(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x, dim=0))


@mixes
def a_layer_of_ones_own(m: Any) -> None:
    m.a = Normalising(6, 8)


@mixes
def a_weight_of_the_batch(m: Any) -> None:
    m.function = lambda m, x: m.head(F.linear(x, m.a.weight * x.mean(), m.a.bias).tanh())


@mixes
def a_weight_normalised_by_what_it_makes(m: Any) -> None:
    m.function = lambda m, x: m.head((m.a(x) / m.a(x).norm()).tanh())


@mixes
def a_module_list_is_indexed_by_the_data(m: Any) -> None:
    m.several = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
    m.function = lambda m, x: m.head(m.several[int(x.sum() > 0)](m.a(x)) + 0 * sum(s(m.a(x)) for s in m.several))


@mixes
def scores_of_too_few_rows(m: Any) -> None:
    m.function = lambda m, x: plain(m, x).mean(0, keepdim=True).repeat(len(x), 1)


@mixes
def a_tensor_subclass_that_mixes(m: Any) -> None:
    class Centring(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = super().__torch_function__(func, types, args, kwargs or {})
            return out - torch.Tensor.mean(out, 0) if func is torch.tanh else out

    m.function = lambda m, x: m.head(torch.tanh(m.a(x).as_subclass(Centring)).as_subclass(torch.Tensor))


@mixes
def a_jitted_function(m: Any) -> None:
    m.function = lambda m, x: m.head(SCRIPTED(m.a(x)))


@mixes
def a_custom_operator(m: Any) -> None:
    m.function = lambda m, x: m.head(m.a(x) + torch.ops.dplip_zoo.centre(x).mean(1, keepdim=True))


SCRIPTED = torch.jit.trace(centred, (torch.zeros(3, 8),), check_trace=False)


@torch.library.custom_op("dplip_zoo::centre", mutates_args=())
def centre(x: Tensor) -> Tensor:
    return x - x.mean(0)


@mixes
def a_hook_for_all_modules_is_left_out_of_training(m: Any) -> None:
    m.a.register_forward_hook(lambda module, args, out: centred(out) if out.requires_grad else out)


@mixes
def an_in_place_write_into_what_was_saved(m: Any) -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        x = x.clone()
        h = m.a(x).tanh()
        x.data.sub_(x.data.mean(0))  # the gradient of the weight is of these rows
        return m.head(h)

    m.function = function
