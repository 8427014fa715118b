"""Recurrences over whole sequences as enforcing nodes: one use of each weight, whatever the number of steps.

With d_t the cotangent of the sums that enter the gates at step t, an example's gradient of the weight of the input is
``sum_t d_t x_t^T``, of the weight of the state ``sum_t d_t h_{t-1}^T``, and of a bias ``sum_t d_t``: each step adds the
gradient of its own linear maps, and d_t contains all that comes back from later steps. The backward passes compute d_t
for all t, one step after the other, for all examples at once. From there on it is a linear map of as many positions as
there are steps: each example's gradient is scaled into the radius by :func:`dplip.nn.bounded.linear.of_weight`.

A step beyond a sequence's length changes nothing: the state is kept, and d_t = 0.

Below, g_t is the cotangent of h_t: what the output of step t gets, and what comes from step t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dplip.nn.bounded.enforcing import Enforcing, Radius, of_bias, require_in_front, sent
from dplip.nn.bounded.linear import of_weight, summation


class Recurrence(Enforcing):
    """Base of the recurrences.

    The arguments are the input (sequences, steps, features), the first states (sequences, features), the weights and
    biases, which steps lie within each sequence (sequences, steps) or None, how many sequences in turn belong to one
    example, the radius, and a setting. The results are the output of all steps, and the last states.
    """

    given = 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v: Tensor) -> Any:
        with torch.autocast(v[0].device.type, enabled=False):
            return ctx._forward_cls.pulled(ctx, *v)


def begun(
    ctx: Any, x: Tensor, alive: Tensor | None, each: int, radius: Radius, *weights: Tensor | None
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The input without what is beyond the lengths; for each step, which sequences it lies within."""
    require_in_front(x, grouped=True)
    count = x.shape[1]
    ctx.radius, ctx.each = radius, each
    ctx.terms = max(summation(tuple(w.shape), (each * count, len(w))).terms for w in weights if w is not None)
    return x if alive is None else x.masked_fill(~alive[..., None], 0.0), steps(alive, count)


def steps(alive: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """For each step, which sequences it lies within; None: all."""
    return [None] * count if alive is None else alive.mT[..., None].unbind()


def kept(on: Tensor | None, new: Tensor, old: Tensor | float) -> Tensor:
    """What is new where a step lies within the sequence, what was there elsewhere."""
    return new if on is None else torch.where(on, new, old)


def front(x: Tensor) -> Tensor:
    """The steps in front of the sequences, or the other way."""
    return x.transpose(0, 1).contiguous()


def sums_of(x: Tensor, weight: Tensor, *biases: Tensor | None) -> Tensor:
    """``W x_t + b`` of all steps, with the steps in front."""
    given = [b for b in biases if b is not None]
    return F.linear(front(x), weight, sum(given[1:], given[0]) if given else None)


def before(first: Tensor, states: Tensor) -> Tensor:
    """The state before each step (sequences, steps, features)."""
    return torch.cat([first[:, None], states[:, :-1]], 1)


def by_example(ctx: Any, x: Tensor) -> Tensor:
    """All steps of all sequences of an example (examples, steps, features)."""
    return x.reshape(len(x) // ctx.each, ctx.each * x.shape[1], x.shape[2])


def of_map(ctx: Any, at: int, d: Tensor, x: Tensor, missing: int = 0) -> Tensor | None:
    """The sum of the examples' gradients of the weight at a place of the arguments, each scaled into the radius.

    Arguments that are missing, in front of the place, have no edge in the graph.
    """
    if not ctx.needs_input_grad[at]:
        return None
    return sent(ctx, at - missing, partial(of_weight, by_example(ctx, x), by_example(ctx, d)))


def of_shift(ctx: Any, at: int, d: Tensor) -> Tensor | None:
    """The same of a bias."""
    return sent(ctx, at, partial(of_bias, by_example(ctx, d))) if ctx.needs_input_grad[at] else None


def of_all(ctx: Any, d: Tensor, on_state: Tensor, x: Tensor, h: Tensor, w: Tensor) -> tuple[Any, ...]:
    """The gradients of the input, of both weights and of both biases, from both weights' cotangents of all steps."""
    n = ctx._forward_cls.given
    below = d @ w if ctx.needs_input_grad[0] else None
    return (
        *(below, of_map(ctx, n, d, x), of_map(ctx, n + 1, on_state, h)),
        *(of_shift(ctx, n + 2, d), of_shift(ctx, n + 3, on_state)),
    )


def backwards(
    v: Tensor, g: Tensor, slopes: Tensor, carried: Tensor | None, u: Tensor, alive: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``d_t = slopes_t g_t`` and g_t within the lengths (sequences, steps, features); the first state's cotangent.

    ``g_{t-1}`` is what its output gets, ``U^T d_t``, and ``carried_t g_t``.
    """
    outputs, slope, carry = front(v).unbind(), slopes.unbind(), None if carried is None else carried.unbind()
    ds, gs, on = [], [], steps(alive, len(outputs))
    for t in range(len(outputs) - 1, -1, -1):
        g = g + outputs[t]
        d = kept(on[t], (slope[t] * g[:, None]).flatten(1), 0.0)
        ds.append(d)
        gs.append(kept(on[t], g, 0.0))
        g = torch.addmm(kept(on[t], torch.zeros_like(g) if carry is None else carry[t] * g, g), d, u)
    return torch.stack(ds[::-1], 1), torch.stack(gs[::-1], 1), g


class Elman(Recurrence):
    """``h_t = s(W x_t + b + U h_{t-1} + c)``, with s = tanh, or relu.

    Backward: ``d_t = s' g_t``, with s' = 1 - h_t^2, or whether h_t > 0, and ``g_{t-1} += U^T d_t``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, first: Any, w: Any, u: Any, b: Any, c: Any, alive: Any, each: int, radius: Radius, relu: bool
    ) -> Any:
        x, on = begun(ctx, x, alive, each, radius, w, u)
        h, states = first, []
        for t, a in enumerate(sums_of(x, w, b, c).unbind()):
            a = torch.addmm(a, h, u.mT)
            h = kept(on[t], a.relu() if relu else a.tanh(), h)
            states.append(h)
        y, ctx.relu = torch.stack(states, 1), relu
        ctx.save_for_backward(x, first, w, u, y, alive)
        return y, h

    @staticmethod
    def pulled(ctx: Any, v: Tensor, g: Tensor) -> Any:
        x, first, w, u, y, alive = ctx.saved_tensors
        h = front(y)[:, :, None]
        d, _, g = backwards(v, g, (h > 0).to(h.dtype) if ctx.relu else 1 - h * h, None, u, alive)
        below, *own = of_all(ctx, d, d, x, before(first, y), w)
        return below, g, *own, None, None, None, None


class Gru(Recurrence):
    """``h_t = (1 - z) n + z h_{t-1}``, with r, z = s(sums of both weights), ``n = tanh(W_n x + b_n + r m)`` and
    ``m = U_n h_{t-1} + c_n``.

    Backward: of n's sum, ``(1 - z)(1 - n^2) g``; of m, r times that; of r's, m r (1 - r) times that; of z's,
    ``(h_{t-1} - n) z (1 - z) g``. The weight of the state has m's cotangent where the weight of the input has n's.
    ``g_{t-1} += z g_t + U^T d_t``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Any, first: Any, w: Any, u: Any, b: Any, c: Any, alive: Any, each: int, radius: Radius, _: Any
    ) -> Any:
        x, on = begun(ctx, x, alive, each, radius, w, u)
        h, states, gates, size = first, [], [], first.shape[1]
        for t, a in enumerate(sums_of(x, w, b).unbind()):
            m = F.linear(h, u, c)
            rz = (a[:, : 2 * size] + m[:, : 2 * size]).sigmoid()
            m = m[:, 2 * size :]
            n = torch.addcmul(a[:, 2 * size :], rz[:, :size], m).tanh()
            h = kept(on[t], torch.lerp(n, h, rz[:, size:]), h)
            states.append(h)
            gates.append(torch.cat([rz, n, m], 1))
        y = torch.stack(states, 1)
        ctx.save_for_backward(x, first, w, u, y, torch.stack(gates), alive)
        return y, h

    @staticmethod
    def pulled(ctx: Any, v: Tensor, g: Tensor) -> Any:
        x, first, w, u, y, gates, alive = ctx.saved_tensors
        r, z, n, m = gates.chunk(4, 2)
        h = before(first, y)
        of_n = (1 - z) * (1 - n * n)
        slopes = torch.stack([of_n * m * r * (1 - r), (front(h) - n) * z * (1 - z), of_n * r], 2)
        on_state, gs, g = backwards(v, g, slopes, z, u, alive)
        d = torch.cat([on_state[..., : 2 * first.shape[1]], front(of_n) * gs], 2)
        below, *own = of_all(ctx, d, on_state, x, h, w)
        return below, g, *own, None, None, None, None


class Lstm(Recurrence):
    """``c_t = f c_{t-1} + i n`` and ``h_t = P (o tanh c_t)``, with i, f, o = s(sums), n = tanh(sum); P may be missing.

    Backward, with e_t the cotangent of c_t and ``q = P^T g``: ``e_t += q o (1 - tanh^2 c_t)``; of the sums of i, f, n
    and o, ``e n i (1 - i)``, ``e c_{t-1} f (1 - f)``, ``e i (1 - n^2)`` and ``q tanh(c_t) o (1 - o)``; then
    ``g_{t-1} += U^T d_t`` and ``e_{t-1} = f e_t``. P is one more linear map of all steps, with the cotangents g_t.
    """

    given = 3

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        first: Any,
        cell: Any,
        w: Any,
        u: Any,
        b: Any,
        c: Any,
        p: Any,
        alive: Any,
        each: int,
        radius: Radius,
    ) -> Any:
        x, on = begun(ctx, x, alive, each, radius, w, u, p)
        h, states, cells, gates, size = first, [], [cell], [], cell.shape[1]
        for t, a in enumerate(sums_of(x, w, b, c).unbind()):
            a = torch.addmm(a, h, u.mT)
            i, f, _, o = a.sigmoid().chunk(4, 1)
            n = a[:, 2 * size : 3 * size].tanh()
            cell = kept(on[t], torch.addcmul(f * cell, i, n), cell)
            out = o * cell.tanh()
            h = kept(on[t], out if p is None else out @ p.mT, h)
            states.append(h)
            cells.append(cell)
            gates.append(a)
        y, ctx.missing = torch.stack(states, 1), 2 * (b is None)
        ctx.save_for_backward(x, first, w, u, p, y, torch.stack(cells), torch.stack(gates), alive)
        return y, h, cell

    @staticmethod
    def pulled(ctx: Any, v: Tensor, g: Tensor, e: Tensor) -> Any:
        x, first, w, u, p, y, cells, gates, alive = ctx.saved_tensors
        i, f, n, o = gates.chunk(4, 2)
        i, f, n, o, top = i.sigmoid(), f.sigmoid(), n.tanh(), o.sigmoid(), cells[1:].tanh()
        slopes = torch.cat([n * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - n * n), top * o * (1 - o)], 2).unbind()
        of_cell, forgotten, outputs, on = (
            (o * (1 - top * top)).unbind(),
            f.unbind(),
            front(v).unbind(),
            steps(alive, v.shape[1]),
        )
        ds, gs = [], []
        for t in range(len(outputs) - 1, -1, -1):
            g = g + outputs[t]
            q = g if p is None else g @ p
            here = torch.addcmul(e, q, of_cell[t])
            d = kept(on[t], torch.cat([here, here, here, q], 1) * slopes[t], 0.0)
            ds.append(d)
            gs.append(kept(on[t], g, 0.0))
            g = torch.addmm(kept(on[t], torch.zeros_like(g), g), d, u)
            e = kept(on[t], here * forgotten[t], e)
        d = torch.stack(ds[::-1], 1)
        below, *own = of_all(ctx, d, d, x, before(first, y), w)
        onto = None if p is None else of_map(ctx, 7, torch.stack(gs[::-1], 1), front(o * top), ctx.missing)
        return below, g, e, *own, onto, None, None, None
