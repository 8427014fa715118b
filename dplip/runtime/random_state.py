"""The states of the global random generators, of torch, numpy and Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every random state as it was."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def random_states() -> tuple[Any, ...]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    name, words, *rest = np.random.get_state(legacy=True)
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    return states, random.getstate(), name, np.asarray(words).tobytes(), rest
