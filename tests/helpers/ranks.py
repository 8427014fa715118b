"""Several processes on this machine that run one function, as ranks of one process group."""

import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

import dplip

PATIENCE = 120.0
"""The seconds after which processes are ended that have not come back."""

TIMEOUT = 40.0
"""The seconds for which a process waits for another one."""


@dataclass
class Outcome:
    """What a rank returned, or the error that it raised; neither, if it was ended."""

    value: Any = None
    error: Exception | None = None


def on_ranks(size: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Outcome]:
    """What ``function(group, *args)`` came to in each of ``size`` processes."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [fork.Pipe(duplex=False) for _ in range(size)]
        ranks = [
            fork.Process(target=_run, args=(rank, size, f"{folder}/store", timeout, pipes[rank][1], function, args))
            for rank in range(size)
        ]
        for rank in ranks:
            rank.start()
        for _, sender in pipes:
            sender.close()
        end = time.monotonic() + PATIENCE
        outcomes = [_received(receiver, end) for receiver, _ in pipes]
        for rank in ranks:
            rank.join(max(0.1, end - time.monotonic()))
            if rank.is_alive():
                rank.kill()
                rank.join()
    return outcomes


def values(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What the processes returned; raises the first error."""
    outcomes = on_ranks(size, function, *args)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def refusals(size: int, function: Callable[..., Any], *args: Any) -> tuple[type[Exception], str]:
    """The error that all processes raised, which is one and the same."""
    errors = [outcome.error for outcome in on_ranks(size, function, *args)]
    assert len({(type(error), str(error)) for error in errors}) == 1, errors
    assert errors[0] is not None
    return type(errors[0]), str(errors[0])


def _received(receiver: Connection, end: float) -> Outcome:
    with suppress(EOFError):
        if receiver.poll(max(0.0, end - time.monotonic())):
            kind, value = pickle.loads(receiver.recv_bytes())
            return Outcome(value=value) if kind is None else Outcome(error=_error(kind, value))
    return Outcome()


def _error(kind: str, text: str) -> Exception:
    found = getattr(dplip, kind, None)
    return found(text) if found is not None else RuntimeError(f"{kind}: {text}")


def _run(
    rank: int, size: int, store: str, timeout: float, sender: Connection, function: Callable[..., Any], args: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    sent: tuple[str | None, Any]
    try:
        sent = None, function(dplip.distributed.group(timeout), *args)
    except Exception as wrong:
        sent = type(wrong).__name__, str(wrong)
    sender.send_bytes(pickle.dumps(sent))  # by value: this process is about to end
    sender.close()
    os._exit(0)
