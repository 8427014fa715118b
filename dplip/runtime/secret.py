"""Secret random bits: sources for one process, lent to code that draws from global generators."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.overrides import TorchFunctionMode

from dplip.errors import ConfigurationError
from dplip.runtime.uncompiled import uncompiled


class Secret:
    """A source of random bits for the process that made it, seeded by the operating system.

    A copy, an unpickled object and a forked process draw afresh: the state is never stored, and no two draw the same.

    Args:
        seed: fixes the draws, for tests: whoever knows it knows them. A seeded source cannot be copied, and a forked
            process may not draw from it, as either would repeat its draws.
        key: tells sources of one seed apart.

    Guarantee: 128 bits of entropy, stretched by SFC64, a statistical generator and not a cryptographic one.
    """

    def __init__(self, seed: int | None = None, *key: int) -> None:
        self._key = key
        self.restart(seed)

    def restart(self, seed: int | None) -> None:
        """Draw from a new stream from now on: of this seed, or of fresh entropy."""
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ConfigurationError(f"seed={seed!r}: a seed is a whole number, 0 or more; pass one, or None")
        self._seed = seed
        self._shared: int | None = None
        self._start()

    def share(self, secret: int) -> None:
        """Draw from now on what all processes draw that were told this secret; a seeded source does so already.

        Like a seeded source it cannot be copied, nor used after a fork.
        """
        if not self.seeded:
            self._shared = secret
            self._start()

    def separate(self, rank: int) -> None:
        """Draw from now on what no other process draws that has the same seed."""
        if self.seeded and rank:
            self._key = (*self._key, _RANK, rank)
            self._start()

    @property
    def seed(self) -> int | None:
        """The seed that fixes the draws; None: there is none."""
        return self._seed

    @property
    def seeded(self) -> bool:
        """Whether the draws were fixed by a seed; a report must say so."""
        return self._seed is not None

    @property
    def bits(self) -> np.random.SFC64:
        """The bits of this process."""
        if self._process != os.getpid():  # a fork inherits the state: never draw it twice
            self._require_own("this process was forked from the one that made it, and both would draw the same")
            self._start()
        return self._bits

    @property
    def numbers(self) -> np.random.Generator:
        """A generator of numbers from the bits of this process."""
        return np.random.Generator(self.bits)

    def __reduce__(self) -> tuple[Any, ...]:
        self._require_own("a copy would repeat its draws")
        return (type(self), (None, *self._key))

    def _require_own(self, reason: str) -> None:
        if self.seeded or self._shared is not None:
            what = f"seed={self._seed}" if self.seeded else "a source that is shared with other processes"
            raise ConfigurationError(f"{what}: {reason}; make another one")

    def _start(self) -> None:
        self._process = os.getpid()
        # Not PyTorch's generator, which keeps 32 bits of its seed on CPU: few enough to try them all.
        self._bits = np.random.SFC64(
            np.random.SeedSequence(self._seed if self._shared is None else self._shared, spawn_key=self._key)
        )


@contextmanager
def lent(secret: Secret, dropout: bool) -> Iterator[None]:
    """Give torch's global generators secret states inside the block, and restore their own states after it.

    Draws inside do not depend on ``torch.manual_seed``, and leave no trace. Other threads wait for the block's end.

    Args:
        secret: source of the states.
        dropout: whether dropout may run. On the CPU its masks are then made of secret bits directly: torch's own, on
            an Intel processor, are one of 2^31 sequences.

    Guarantee: on the CPU the whole state of torch's generator is replaced (as random as ``secret``); on a CUDA device
    its seed of 64 bits.
    """
    with _turn():
        on_devices = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        before = [(g, g.get_state()) for g in (torch.default_generator, *on_devices)]
        bits = secret.bits
        try:
            torch.default_generator.set_state(_state(bits))
            for generator in on_devices:
                generator.manual_seed(int(bits.random_raw()))
            if dropout:
                with _Dropout(bits):
                    yield
            else:
                yield
        finally:
            for generator, state in before:
                generator.set_state(state)


@contextmanager
def _turn() -> Iterator[None]:
    """Let one thread at a time in: of two, the first to leave would restore the global state under the other.

    The second would then leave the first one's secret state behind, from which a later pass would draw the same again.
    """
    turn = _TURNS[0]
    if not turn.acquire(timeout=PATIENCE):
        raise ConfigurationError(
            f"threading.current_thread()={threading.current_thread().name!r}: another thread has been within a "
            f"private pass for {PATIENCE} s, or was interrupted there, and torch's global generators serve one at a "
            "time. Train in that thread, or in a process of its own."
        )
    try:
        yield
    finally:
        with suppress(RuntimeError):  # an interrupted pass, cleared away by a thread that does not have the turn
            turn.release()


PATIENCE = 60.0
_TURNS = [threading.RLock()]
if hasattr(os, "register_at_fork"):  # a fork may come while another thread has the turn, which the child does not have
    os.register_at_fork(after_in_child=lambda: _TURNS.__setitem__(0, threading.RLock()))


@contextmanager
def lent_to_readers(secret: Secret) -> Iterator[None]:
    """Lend to code that reads examples, as :func:`lent`, with numpy's and Python's global generators too."""
    with lent(secret, dropout=False):
        before = np.random.get_state(), random.getstate()
        try:
            words = secret.bits.random_raw(_WORDS).view(np.uint32)
            np.random.set_state(("MT19937", words[:_WORDS], _WORDS, 0, 0.0))
            random.setstate((3, (*words[_WORDS:].tolist(), _WORDS), None))
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


_RANK = 3  # before the number of a process, in the key of a source
_WORDS = 624  # of a Mersenne Twister, 32 bits each
_FRESH = torch.Generator().manual_seed(0).get_state()


def _state(bits: np.random.SFC64) -> Tensor:
    """A state of torch's generator on the CPU, all of whose words are random."""
    state = _FRESH.clone()
    words = bits.random_raw(_WORDS // 2).view(np.uint32).astype(np.int64)
    state.view(torch.int64)[3 : 3 + _WORDS] = torch.from_numpy(words)
    return state


class _Dropout(TorchFunctionMode):
    """Dropout on the CPU by masks of given bits."""

    def __init__(self, bits: np.random.SFC64) -> None:
        super().__init__()
        self._bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Compiled code has masks of its own, of 64 bits. Checkpointed code must draw from torch's state to repeat it.
        if func in _AXES and not torch.compiler.is_compiling() and _top_saved_tensors_default_hooks(True) is None:
            return self._drop(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    @uncompiled  # a graph cannot hold numpy's words
    def _drop(self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        axes = _AXES[func]
        usual = training and 0 < p < 1 and not inplace and input.device.type == "cpu"
        if not usual or (axes and input.dim() != 2 + axes):
            out: Tensor = func(input, p, training, inplace)
            return out
        shape = (*input.shape[: input.dim() - axes], *(1,) * axes)
        count = int(np.prod(shape))
        words = self._bits.random_raw((count + 1) // 2).view(np.uint32)[:count]
        keep = torch.empty(shape, dtype=torch.bool)  # by torch, for those who follow its operators
        keep.numpy()[...] = (words >= round(p * 2**32)).reshape(shape)
        return input * keep.to(input.dtype).div_(1 - p)


_AXES = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2}
"""How many of the last axes share one entry of a mask."""
