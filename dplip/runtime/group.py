"""The processes that train one model together: one mask, one sum, one draw a coordinate, one refusal.

Messages between processes are sentences and numbers, never pickled objects. Every exchange begins with one and the
same header (:meth:`Group.agree`), so that a process that refuses meets the others wherever they are, and all raise one
sentence.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dplip import errors
from dplip.errors import ConfigurationError, DPLipError, GroupError, first_line

TIMEOUT = 300.0
"""The seconds for which a process waits for another one."""

BUCKET = 25 * 2**20
"""The bytes that are summed at a time, unless one tensor has more."""

SHOWN = 60
"""The characters of a fact that an error shows."""


class Group:
    """The processes that train one model together; this class is the group of one process, which asks nobody.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    rank, size = 0, 1

    def agree(self, problem: Exception | None = None, doing: str = "") -> None:
        """Raise the same error in all processes if one of them has a problem, or if they do not do the same.

        Args:
            problem: what went wrong in this process; None: nothing.
            doing: what this process is about to do.
        """
        if problem is not None:
            raise problem

    @contextmanager
    def agreed(self, doing: Callable[[], str]) -> Iterator[None]:
        """A block that succeeds in all processes, or raises the same error in all of them.

        Args:
            doing: says what this process is about to do; asked where there are others.
        """
        problem, text = None, ""
        try:
            text = doing() if self.size > 1 else ""
            yield
        except Exception as wrong:
            problem = wrong
        self.agree(problem, text)

    def in_turn(self, call: Callable[[], None]) -> None:
        """Call a function in the first process and, when it has returned there, in the others.

        Guarantee: it has returned in the first process before any process goes on.
        """
        with self.agreed(lambda: "the first process's turn"):
            if self.rank == 0:
                call()
        if self.rank != 0:
            call()

    def same(self, facts: Callable[[], Mapping[str, object]]) -> None:
        """Refuse facts that differ between processes, compared by their ``repr``; asked where there are others.

        Raises:
            GroupError: names the fact and the process.
        """

    def secret(self) -> int:
        """128 bits from the first process's operating system, which all processes are told, and nobody stores."""
        return int.from_bytes(os.urandom(16), "big")

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """The largest value over all processes, by its name; all have the same names in the same order."""
        return dict(values)

    def share_(self, tensors: Sequence[Tensor]) -> None:
        """Give the values of the first process's tensors to those of the others, in place."""

    def summed(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Sum tensors over all processes in place: in float64, then rounded to their own types.

        Yields:
            the number of a tensor, and the entries of its sum that this process owns, as a view: what is written there
            is what all processes receive. Each entry is owned by one process, and its sum is complete.

        Guarantee: an entry is received only after all processes have begun to sum.
        """
        yield from enumerate(tensors)


class Processes(Group):
    """All processes of ``torch.distributed``'s default group, which has more than one.

    Args:
        timeout: the seconds to wait for another process, before this one stops with an error.
    """

    def __init__(self, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._timeout, self._lost = timeout, ""
        backend, wait = dist.get_backend(), timedelta(seconds=timeout)
        self._talk = dist.new_group(backend="gloo", timeout=wait)
        self._sums = self._talk if backend == "gloo" else dist.new_group(timeout=wait)

    def agree(self, problem: Exception | None = None, doing: str = "") -> None:
        if getattr(problem, "of_all", False):
            raise cast(Exception, problem)  # every process has it already
        own = torch.tensor([problem is not None, _number(doing)], dtype=torch.int64)
        every = self._gathered(own)
        if not bool(every[:, 0].any()) and bool((every[:, 1] == own[1]).all()):
            return
        kind = None if problem is None else type(problem).__name__
        said = [json.loads(text) for text in self._texts(json.dumps([kind, doing if kind is None else str(problem)]))]
        raise _of_all(_error(said)) from problem

    def same(self, facts: Callable[[], Mapping[str, object]]) -> None:
        self.agree(doing="facts")
        known = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in facts().items()}
        first, *others = (json.loads(text) for text in self._texts(json.dumps(known)))
        for rank, other in enumerate(others, start=1):
            for name in [*first, *other]:
                here, there = first.get(name, "nothing"), other.get(name, "nothing")
                if here != there:
                    raise _of_all(
                        GroupError(
                            f"rank {rank} of {self.size}: {name}={_from_difference(there, here)}, and rank 0 has "
                            f"{name}={_from_difference(here, there)}, so they would not train as one. Start all "
                            "processes with the same settings, data and versions."
                        )
                    )

    def secret(self) -> int:
        self.agree(doing="a secret")
        return int(self._texts(str(super().secret() if self.rank == 0 else 0))[0])

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        self.agree(doing=f"the largest of {list(values)}")
        every = self._gathered(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, every.amax(0).tolist(), strict=True))

    @torch.no_grad()
    def share_(self, tensors: Sequence[Tensor]) -> None:
        self.agree(doing=f"shared tensors of shapes {[tuple(t.shape) for t in tensors]}")
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            self._call(lambda: dist.broadcast(whole, 0, group=self._of(whole)))  # noqa: B023
            if self.rank != 0:
                tensor.copy_(whole)

    @torch.no_grad()
    def summed(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
        self.agree(doing=f"sums of {[(tuple(t.shape), t.dtype) for t in tensors]}")
        for bucket in _buckets(tensors):
            parts = [tensors[i].flatten() for i in bucket]
            share = -(-sum(map(len, parts)) // self.size)
            exact = torch.cat([*parts, parts[0].new_zeros(share * self.size - sum(map(len, parts)))]).double()
            group = self._of(exact)
            self._call(lambda: dist.all_reduce(exact, group=group))  # noqa: B023
            flat = exact.to(parts[0].dtype)
            start, first, last = 0, share * self.rank, share * (self.rank + 1)
            for i, part in zip(bucket, parts, strict=True):
                own = flat[max(start, first) : min(start + len(part), last)]
                if max(start, first) < min(start + len(part), last):
                    yield i, own
                start += len(part)
            own = flat[first:last].clone()
            self._call(lambda: dist.all_gather(list(flat.split(share)), own, group=group))  # noqa: B023
            for i, whole in zip(bucket, flat.split([*map(len, parts), len(flat) - start]), strict=False):
                tensors[i].copy_(whole.view(tensors[i].shape))

    def _of(self, tensor: Tensor) -> dist.ProcessGroup:
        return self._talk if tensor.device.type == "cpu" else self._sums

    def _gathered(self, own: Tensor) -> Tensor:
        """The row of each process, on the CPU."""
        every = own.new_empty(self.size * len(own))
        self._call(lambda: dist.all_gather(list(every.split(len(own))), own, group=self._talk))
        return every.view(self.size, -1)

    def _texts(self, own: str) -> list[str]:
        """The text of each process."""
        data = own.encode()
        sizes = self._gathered(torch.tensor([len(data)]))[:, 0].tolist()
        padded = torch.frombuffer(bytearray(data.ljust(max(sizes) + 1, b" ")), dtype=torch.uint8)
        return [bytes(row[:size]).decode() for row, size in zip(self._gathered(padded), sizes, strict=True)]

    def _call(self, collective: Callable[[], object]) -> None:
        """Run a collective operation; where it fails, this process takes part in no other one."""
        if not self._lost:
            try:
                collective()
                return
            except RuntimeError as wrong:
                self._lost = (
                    f"rank {self.rank} of {self.size}: another process has ended, or has not answered within "
                    f"{self._timeout:g} s ({first_line(wrong)[:SHOWN]}), and none can go on without it. Start all of "
                    "them anew; where one is only slow, dplip.distributed.group(timeout=...) waits longer."
                )
        raise _of_all(GroupError(self._lost))

    def __reduce__(self) -> Any:
        raise ConfigurationError(
            "Group: a copy of what trains with other processes would draw and sum beside it. Make one in each process."
        )


_JOINED: list[tuple[Any, Group]] = []


def joined(timeout: float = TIMEOUT) -> Group:
    """The group of all processes that a launcher such as torchrun has started; of this one, if there is no other.

    Starts ``torch.distributed`` where it is not started. All processes call it; later calls return the same group.

    Args:
        timeout: the seconds for which a process waits for another one.

    Raises:
        ConfigurationError: the launcher's environment variables do not say how to start it.
    """
    if not dist.is_available():
        return Group()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except (ValueError, RuntimeError) as wrong:
            raise ConfigurationError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']}: the processes cannot be brought together "
                f"({first_line(wrong)}). Start them by torchrun, or call torch.distributed.init_process_group first."
            ) from wrong
    if dist.get_world_size() == 1:
        return Group()
    if not _JOINED or _JOINED[0][0] is not dist.group.WORLD:
        _JOINED[:] = [(dist.group.WORLD, Processes(timeout))]
    return _JOINED[0][1]


def group_of(distributed: str | Group | None) -> Group:
    """The group that an argument names: ``"auto"``: see :func:`joined`; a group: itself; else this process alone."""
    if isinstance(distributed, Group):
        return distributed
    return joined() if distributed == "auto" else Group()


F = TypeVar("F", bound=Callable[..., Any])


def together(function: F) -> F:
    """Let a function with the keyword ``distributed`` succeed in all processes of that group, or in none of them."""

    @functools.wraps(function)
    def called(*args: Any, **keywords: Any) -> Any:
        with group_of(keywords.get("distributed")).agreed(lambda: function.__qualname__):
            return function(*args, **keywords)

    return cast(F, called)


def digest(tensors: Sequence[Tensor]) -> str:
    """A digest of the bits of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of tensors that are summed together: of one type and device, and not too large."""
    found: dict[Any, list[list[int]]] = {}
    room: dict[Any, float] = {}
    for i, tensor in enumerate(tensors):
        key, size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        if room.get(key, -1.0) < size:
            found.setdefault(key, []).append([])
            room[key] = BUCKET
        found[key][-1].append(i)
        room[key] -= size
    return [bucket for buckets in found.values() for bucket in buckets]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _of_all(error: Exception) -> Exception:
    """Mark an error that every process raises, so that none asks the others about it again."""
    error.of_all = True  # type: ignore[attr-defined]
    return error


def _error(said: list[tuple[str | None, str]]) -> DPLipError:
    """The error of all processes, from the kind and the text of each one's problem, or from what each is doing."""
    failed = [(rank, kind, text) for rank, (kind, text) in enumerate(said) if kind is not None]
    if not failed:
        rank, other = next((rank, text) for rank, (_, text) in enumerate(said) if text != said[0][1])
        return GroupError(
            f"rank {rank} of {len(said)} is at {_from_difference(other, said[0][1])!r}, and rank 0 at "
            f"{_from_difference(said[0][1], other)!r}, so they do not train as one. Let all processes take the same "
            "steps, and change weights, settings and learning rates alike in all of them."
        )
    rank, kind, text = failed[0]
    found = getattr(errors, kind, None)
    known = isinstance(found, type) and issubclass(found, DPLipError)
    text = text if known else f"{kind}: {text}"
    if len({(k, t) for k, t in said}) > 1:
        text = f"rank {rank} of {len(said)}: {text}"
    return cast(type[DPLipError], found)(text) if known else GroupError(text)


def _from_difference(one: str, other: str) -> str:
    """A text; of a long one, a part with the first difference from another."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = 0 if at < SHOWN // 2 else at - SHOWN // 3
    return ("..." if start else "") + one[start : start + SHOWN] + ("..." if len(one) > start + SHOWN else "")
