"""Laws that every rule obeys: what is claimed is attacked, and compared with exact Jacobians."""

import functools
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from helpers.sample import Sample
from torch import Tensor, nn
from torch.func import grad, vmap

from dplip import Norms
from dplip.propagation import Walk

NAMES = {1.0: "l1", 2.0: "l2", inf: "linf"}
EXPONENTS = tuple(NAMES)

Quantity = tuple[str, float, float, float]
"""What is bounded ("output", "input", or a parameter), the exponents of the input's ball and of the cotangent's ball,
and that of the norm that is bounded."""


# ---------------------------------------------------------------------------------------------------- weights

FAMILIES = ("random", "orthogonal", "rank one", "equal", "sign")


@torch.no_grad()
def set_weights(module: nn.Module, family: str, seed: int = 0) -> None:
    """Fill every parameter with one of the families of weights, at a random scale."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        rows = (p.shape[0], -1) if p.ndim > 1 else (1, -1)
        w = torch.randn(p.shape, generator=generator, dtype=torch.float64).reshape(rows)
        if family == "orthogonal":
            u, _, v = torch.linalg.svd(w, full_matrices=False)
            w = u @ v
        elif family == "rank one":
            w = w[:, :1] * w[:1]
        elif family == "equal":
            w = torch.ones_like(w)
        elif family == "sign":
            w = w.sign()
        scale = 10 ** float(torch.randn(1, generator=generator))
        p.copy_((w * scale).reshape(p.shape))


# ---------------------------------------------------------------------------------------------------- claims


def claims(walk: Walk, radius: float | None) -> dict[Quantity, float]:
    """Every bound that a walk states, for inputs in each of the balls (None: anywhere) and cotangents in unit balls."""
    stated: dict[Quantity, float] = {}
    for p in EXPONENTS:
        norms = None if radius is None else Norms(walk.input_shape, **{NAMES[p]: radius})
        output, pullback = walk(norms)
        for q in EXPONENTS:
            cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
            for what, norms in {"output": output, "input": cotangent, **parameters}.items():
                for r in EXPONENTS:
                    stated[what, p, q, r] = float(norms.norm(r))
    return stated


# ---------------------------------------------------------------------------------------------------- attack

GRID = list(itertools.product(EXPONENTS, EXPONENTS, EXPONENTS))


def norms_of(x: Tensor, p: Tensor) -> Tensor:
    """The norm of each row, each with its own exponent."""
    rows = x.reshape(len(x), -1)
    all_three = torch.stack([torch.linalg.vector_norm(rows, e, dim=1) for e in EXPONENTS])
    chosen = all_three.gather(0, ((p == 2.0) + 2 * (p == inf))[None].long())[0]
    return torch.nan_to_num(chosen, nan=inf, posinf=inf)  # a value that is no number is beyond every bound


def extreme(g: Tensor, p: Tensor) -> Tensor:
    """The point of each row's unit lp ball where ``<g, x>`` is largest; the row itself where it is zero."""
    rows = g.reshape(len(g), -1)
    l2 = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-300)
    one_hot = F.one_hot(rows.abs().argmax(1), rows.shape[1]) * rows.sign()
    choice = torch.where((p == 1.0)[:, None], one_hot, torch.where((p == 2.0)[:, None], l2, rows.sign()))
    return choice.reshape(g.shape)


def starts(shape: tuple[int, ...], p: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Points on the lp spheres, in turn one-hot, constant and of random signs; and two of eight inside the balls."""
    n, count = math.prod(shape), len(p)
    noise = torch.randn(count, n, generator=generator, dtype=torch.float64)
    one_hot = F.one_hot(torch.randint(n, (count,), generator=generator), n) * noise[:, :1].sign()
    centre = sum((size // 2) * math.prod(shape[i + 1 :]) for i, size in enumerate(shape))
    middle = F.one_hot(torch.full((count,), centre), n).double()
    kinds = [one_hot, torch.ones_like(noise), middle, -torch.ones_like(noise), noise.sign(), noise, noise, one_hot]
    kind = torch.arange(count) % len(kinds)
    rows = torch.stack(kinds)[kind, torch.arange(count)]
    reach = torch.where(interior(count), torch.rand(count, generator=generator, dtype=torch.float64), 1.0)
    return (rows * (radius * reach / norms_of(rows, p))[:, None]).reshape(count, *shape)


def interior(count: int) -> Tensor:
    """Which of the starts lie inside their ball; from there an attack moves by smaller and smaller steps."""
    return torch.arange(count) % 8 >= 6


def per_example(module: nn.Module, what: str, x: Tensor, v: Tensor) -> Tensor:
    """One row per example: the output, the input's cotangent, or a parameter's cotangent, for cotangent v."""
    torch.default_generator.manual_seed(0)  # one dropout mask for every evaluation, so that ascent climbs one function
    if what == "output":
        return module(x)
    if what == "input":
        return torch.autograd.grad((module(x) * v).sum(), x, create_graph=True)[0]

    holders = [(m, k) for m in module.modules() for k, p in m._parameters.items() if p is module.get_parameter(what)]

    def score(p: Tensor, x: Tensor, v: Tensor) -> Tensor:
        with replaced(holders, p):
            return (module(x[None])[0] * v).sum()

    p = module.get_parameter(what)
    try:
        return vmap(grad(score), in_dims=(None, 0, 0), randomness="same")(p, x, v)
    except RuntimeError as unsupported:  # some autograd functions know no vmap: one example after the other then
        if "vmap" not in str(unsupported):
            raise
        rows = (torch.autograd.grad(score(p, a, b), p, create_graph=True)[0] for a, b in zip(x, v, strict=True))
        return torch.stack(list(rows))


@contextmanager
def replaced(holders: list[tuple[nn.Module, str]], value: Tensor) -> Iterator[None]:
    """Put another tensor in place of a parameter, wherever it is held.

    torch.func.functional_call loses the parameter of a module that stands in several places of a model.
    """
    kept = [m._parameters[k] for m, k in holders]
    for m, k in holders:
        m._parameters[k] = value
    try:
        yield
    finally:
        for (m, k), p in zip(holders, kept, strict=True):
            m._parameters[k] = p


@dataclass
class Attack:
    """The worst case found: per quantity the value, the input and the cotangent."""

    value: dict[Quantity, float]
    x: dict[Quantity, Tensor]
    v: dict[Quantity, Tensor]


def attack(walk: Walk, module: nn.Module, radius: float, count: int = 8, steps: int = 12, seed: int = 0) -> Attack:
    """Maximise every quantity over the input and the cotangent."""
    generator = torch.Generator().manual_seed(seed)
    found = Attack({}, {}, {})
    output_shape = walk(None)[0].shape
    parameters = [name for name, p in module.named_parameters() if p.requires_grad]
    for what in ("output", "input", *parameters):
        grid = [case for case in GRID if what != "output" or case[1] == 2.0]  # an output has no cotangent
        cases = [case for case in grid for _ in range(count)]
        p, q, r = (torch.tensor([case[i] for case in cases]) for i in range(3))
        size = (len(cases), *[1] * len(walk.input_shape))
        x = starts(walk.input_shape, p, radius, generator)
        v = starts(output_shape, q, 1.0, generator)
        best = torch.full((len(cases),), -1.0, dtype=torch.float64)
        best_x, best_v = x.clone(), v.clone()
        for step in range(steps):
            x, v = x.detach().requires_grad_(), v.detach().requires_grad_()
            value = norms_of(per_example(module, what, x, v), r)
            better = value.detach() > best
            if not (value.detach() > best * (1 + 1e-6)).any():
                break
            best = torch.where(better, value.detach(), best)
            best_x[better], best_v[better] = x.detach()[better], v.detach()[better]
            if not value.requires_grad:  # a constant output: nothing to climb
                break
            try:
                up_x, up_v = torch.autograd.grad(value.sum(), (x, v), allow_unused=True)
            except RuntimeError as missing:  # a few functions have no second derivative: no climbing then
                if not any(
                    part in str(missing) for part in ("not implemented", "differentiate twice", "does not require")
                ):
                    raise
                break
            with torch.no_grad():
                if up_x is not None:
                    up_x = torch.nan_to_num(up_x)
                    pace = torch.where(interior(len(cases)), 1.0 / (2 + step), 1.0).to(x.dtype).reshape(size)
                    pace = pace * (up_x.flatten(1).abs().amax(1) > 0).reshape(size)
                    x = x + pace * (radius * extreme(up_x, p) - x)
                if up_v is not None:
                    up_v = torch.nan_to_num(up_v)
                    moves = (up_v.flatten(1).abs().amax(1) > 0).reshape(len(cases), *[1] * len(output_shape))
                    v = torch.where(moves, extreme(up_v, q), v)
        top = best.reshape(len(grid), count).max(1)
        for i, case in enumerate(grid):
            key, winner = (what, *case), i * count + int(top.indices[i])
            found.value[key], found.x[key], found.v[key] = float(top.values[i]), best_x[winner], best_v[winner]
    return found


def worst(claimed: dict[Quantity, float], attained: dict[Quantity, float]) -> tuple[float, Quantity]:
    """The largest ratio of attained to claimed, and where; a bound of zero may be missed by rounding alone."""
    ratios = {key: value / max(claimed[key], 1e-12) for key, value in attained.items()}
    key = max(ratios, key=lambda k: ratios[k])
    return ratios[key], key


# ---------------------------------------------------------------------------------------------------- exact Jacobians


def jacobians(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The exact Jacobian of one example's output: of shape (outputs, inputs), and (outputs, entries) per parameter."""
    x = x.detach()[None].requires_grad_()
    torch.manual_seed(0)
    output = module(x)[0].reshape(-1)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    rows = [torch.autograd.grad(o, (x, *trained.values()), retain_graph=True, allow_unused=True) for o in output]
    found = {}
    for i, (name, value) in enumerate({"input": x, **trained}.items()):
        found[name] = torch.stack(
            [torch.zeros_like(value).reshape(-1) if row[i] is None else row[i].reshape(-1) for row in rows]
        )
    return found


def induced(matrix: Tensor) -> dict[tuple[float, float], float]:
    """The induced norms p -> r of a matrix (outputs x inputs) that have a closed form."""
    if not matrix.numel():
        return dict.fromkeys([(1.0, 1.0), (1.0, 2.0), (1.0, inf), (2.0, 2.0), (2.0, inf), (inf, inf)], 0.0)
    vector_norm = torch.linalg.vector_norm
    return {
        (1.0, 1.0): float(vector_norm(matrix, 1, dim=0).max()),
        (1.0, 2.0): float(vector_norm(matrix, 2, dim=0).max()),
        (1.0, inf): float(matrix.abs().max()),
        (2.0, 2.0): float(torch.linalg.matrix_norm(matrix, 2)),
        (2.0, inf): float(vector_norm(matrix, 2, dim=1).max()),
        (inf, inf): float(vector_norm(matrix, 1, dim=1).max()),
    }


@functools.cache
def prepared(sample: Sample) -> tuple[nn.Module, Walk]:
    """The module of a sample and its walk, traced once: a walk reads the weights that are there when it is called."""
    module = sample.module()
    return module, Walk(module, sample.shape)
