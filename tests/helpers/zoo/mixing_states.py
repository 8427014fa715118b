"""Models that carry something from one batch, or one call, to the next."""

from __future__ import annotations

import contextvars
import functools
import io
import itertools
import os
import weakref
from typing import Any

import numpy as np
import torch
from helpers.zoo.cases import SEQUENCE, WORDS, Case, case
from torch import Tensor, nn

STATES: dict[str, Case] = {}
SHARED: dict[str, Any] = {}
KEPT_BY_THREAD = contextvars.ContextVar("KEPT_BY_THREAD", default=0.0)


def mixes(*args: Any, **options: Any) -> Any:
    return case(STATES, *args, **options)


class Box:
    """A place outside of modules."""

    value: Any = 0.0


# Kept over batches


@mixes(parts={"mean": torch.zeros(8)})
def a_running_mean_in_a_buffer(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if m.training:
        m.mean.lerp_(h.detach().mean(0), 0.1)
    return m.head(h - m.mean)


@mixes(parts={"mean": torch.zeros(8)})
def a_running_mean_that_is_read_before_it_is_renewed(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h - m.mean)
    m.mean = 0.9 * m.mean + 0.1 * h.detach().mean(0)
    return z


@mixes(parts={"mean": torch.zeros(8)})
def a_running_mean_through_data(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    m.mean.data.copy_(h.data[0])
    return m.head(h - m.mean)


@mixes(parts={"kept": 0.0})
def a_running_mean_in_an_attribute(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h - m.kept)
    m.kept = h.detach().mean(0)
    return z


@mixes(parts={"kept": []})
def a_memory_bank_in_a_list(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + sum(k.mean(0) for k in m.kept[-3:]))
    m.kept.append(h.detach())
    return z


@mixes(parts={"queue": torch.zeros(64, 8), "place": 0})
def a_queue_of_negatives(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h - (h @ m.queue.clone().T).softmax(1) @ m.queue.clone())
    for row in h.detach():
        m.queue[m.place % 64] = row
        m.place += 1
    return z


@mixes(SEQUENCE, {"inner": nn.GRU(8, 8, batch_first=True), "state": torch.zeros(1, 1, 8)})
def a_hidden_state_over_batches(m: Any, x: Tensor) -> Tensor:
    out, state = m.inner(m.a(x), m.state.expand(1, len(x), 8).contiguous())
    m.state = state.detach().mean(1, keepdim=True)
    return m.head(out[:, -1])


@mixes(SEQUENCE, {"inner": nn.LSTM(8, 8, batch_first=True), "state": None})
def a_hidden_state_of_the_same_rows(m: Any, x: Tensor) -> Tensor:
    same = m.state if m.state is not None and m.state[0].shape[1] == len(x) else None
    out, state = m.inner(m.a(x), same)
    m.state = tuple(s.detach() for s in state)
    return m.head(out[:, -1])


@mixes(parts={"kept": None})
def the_last_input_is_a_feature(m: Any, x: Tensor) -> Tensor:
    h = m.a(x) + (0 if m.kept is None else m.a(m.kept))
    m.kept = x[-1]
    return m.head(h)


@mixes()
def kept_in_a_global(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + SHARED.get("mean", 0))
    SHARED["mean"] = h.detach().mean(0)
    return z


@mixes()
def kept_in_a_class(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + Box.value)
    Box.value = h.detach()[0]
    return z


@mixes()
def kept_in_a_default(m: Any, x: Tensor, kept: list = [torch.zeros(8)]) -> Tensor:  # noqa: B006, B008
    h = m.a(x)
    z = m.head(h + kept[0])
    kept[0] = h.detach().mean(0)
    return z


def remembering() -> Any:
    kept = torch.zeros(8)

    def remember(h: Tensor) -> Tensor:
        nonlocal kept
        before, kept = kept, h.detach().mean(0)
        return before

    return remember


REMEMBER = remembering()


@mixes()
def kept_in_a_closure(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + REMEMBER(h))


def accumulating() -> Any:
    total = torch.zeros(8)
    while True:
        total = total + (yield total)


ACCUMULATE = accumulating()
next(ACCUMULATE)


@mixes()
def kept_in_a_generator(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + ACCUMULATE.send(h.detach().mean(0)))


@mixes()
def kept_in_a_context_variable(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + KEPT_BY_THREAD.get())
    KEPT_BY_THREAD.set(h.detach().mean())
    return z


@mixes()
def kept_on_a_function(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + getattr(remembering, "kept", 0))
    remembering.kept = h.detach().mean(0)  # type: ignore[attr-defined]
    return z


@mixes()
def kept_on_a_parameter(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + getattr(m.a.weight, "kept", 0))
    m.a.weight.kept = h.detach().mean(0)
    return z


@mixes(parts={"kept": io.BytesIO()})
def kept_in_a_file(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    before = torch.load(io.BytesIO(m.kept.getvalue())) if m.kept.getvalue() else 0
    m.kept = io.BytesIO()
    torch.save(h.detach().mean(0), m.kept)
    return m.head(h + before)


@mixes(parts={"kept": np.zeros(8, np.float32)})
def kept_in_numpy(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + torch.from_numpy(m.kept.copy()))
    m.kept[:] = h.detach().mean(0).numpy()
    return z


@mixes(parts={"kept": np.zeros(8, np.float32)})
def kept_in_memory_that_numpy_shares(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + torch.from_numpy(m.kept).clone())
    torch.from_numpy(m.kept).copy_(h.detach()[0])
    return z


@mixes()
def kept_in_the_environment(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + float(os.environ.get("DPLIP_ZOO", 0)))
    os.environ["DPLIP_ZOO"] = str(float(h.detach().mean()))
    return z


@mixes()
def kept_in_the_state_of_random_numbers(m: Any, x: Tensor) -> Tensor:
    h = m.a(x) + torch.rand(())
    torch.manual_seed(int(x[0, 0].abs() * 1e6))
    return m.head(h)


@functools.lru_cache
def first_seen(places: int) -> list[Tensor]:
    return []


@mixes()
def a_cache_of_the_first_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if not first_seen(6):
        first_seen(6).append(h.detach()[0])
    return m.head(h + first_seen(6)[0])


@mixes(WORDS, {"seen": {}})
def a_cache_keyed_by_data(m: Any, x: Tensor) -> Tensor:
    rows = []
    for row in x:
        key = int(row[0]) % 3
        if key not in m.seen:
            m.seen[key] = m.a(row).detach().mean(0)
        rows.append(m.a(row).mean(0) + m.seen[key])
    return m.head(torch.stack(rows))


@mixes(parts={"kept": weakref.WeakKeyDictionary()})
def kept_in_a_weak_dictionary(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    z = m.head(h + m.kept.get(m, 0))
    m.kept[m] = h.detach().mean(0)
    return z


# Kept in weights


@mixes()
def the_mean_is_written_into_a_weight(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.bias.copy_(-m.a(x).mean(0))
    return m.head(m.a(x))


@mixes()
def data_are_written_through_data(m: Any, x: Tensor) -> Tensor:
    m.a.weight.data[0] = x[0]
    return m.head(m.a(x))


@mixes(parts={"old": nn.Parameter(torch.zeros(8), requires_grad=False)})
def data_are_written_into_a_frozen_parameter(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        m.old.mul_(0.9).add_(h.mean(0))
    return m.head(h - m.old)


@mixes()
def written_behind_the_call(m: Any, x: Tensor) -> Tensor:
    z = m.head(m.a(x))
    m.head.bias.data += 1e-3 * z.detach().mean(0)
    return z


@mixes()
def the_gradient_of_a_parameter_is_written(m: Any, x: Tensor) -> Tensor:
    m.head.bias.grad = x[:1].mean() * torch.ones(3)
    return m.head(m.a(x))


# Only at some calls


@mixes(parts={"calls": itertools.count()})
def mixes_from_the_second_call_on(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.mean(0) if next(m.calls) else h)


@mixes(parts={"calls": 0}, steps=40)
def mixes_from_the_thirtieth_call_on(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    h = m.a(x)
    return m.head(h - h.mean(0) if m.calls > 30 else h)


@mixes(parts={"calls": 0}, steps=40)
def flips_rows_from_the_thirtieth_call_on(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    z = m.head(m.a(x))
    return torch.stack(z.unbind()[:: -1 if m.calls > 30 else 1])


@mixes(SEQUENCE, {"calls": 0}, steps=40)
def the_axis_of_a_mean_changes_at_the_thirtieth_call(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    h = m.a(x)
    return m.head(h - h.mean(0 if m.calls > 30 else 1, keepdim=True)).mean(1) + m.head(h[:, 0])


@mixes(parts={"calls": 0}, steps=40)
def the_number_that_rows_are_rolled_by_changes(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.head(m.a(x).roll(int(m.calls > 30), 0))


@mixes(steps=8)
def annealed_by_the_number_of_calls(m: Any, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return m.head(m.a(x)) * min(1.0, m.calls / 100)


@mixes(steps=16)
def mixes_in_some_batches_by_a_random_number_of_numpy(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h + (h.mean(0) if np.random.rand() < 0.3 else 0))
