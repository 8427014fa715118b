"""The file of a ledger: locked by one process at a time, and renamed when a new run begins in its folder."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from dplip.errors import LedgerError
from dplip.runtime.files import sync_directory

fcntl: Any
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # not on Windows, where two runs must be kept apart by hand
    fcntl = None
PATIENCE = 2.0  # seconds: a process that was just killed may hold its lock a moment longer
sync = getattr(os, "fdatasync", os.fsync)  # leaves out the time stamps only


def set_aside(path: str | os.PathLike[str]) -> Path | None:
    """Rename the ledger of an earlier run, so that a new run can begin in its folder and no record is lost.

    Returns:
        The new name, ``NAME-1.jsonl`` and so on; None if there is no such ledger.

    Raises:
        LedgerError: another process has the ledger open.
    """
    old = Path(path)
    if not old.exists():
        return None
    with open_locked(old, create=False):
        number = 1
        while (new := old.with_name(f"{old.stem}-{number}{old.suffix}")).exists():
            number += 1
        old.rename(new)
        sync_directory(old.parent)
    return new


def open_locked(path: Path, create: bool) -> BinaryIO:
    try:
        flags = os.O_RDWR | (os.O_CREAT if create else 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o644)
    except OSError as problem:
        raise LedgerError(
            f"{path}: cannot be opened for writing ({problem.strerror}); "
            "check the path, and when resuming that there is a ledger"
        ) from None
    file = os.fdopen(descriptor, "r+b", buffering=0)
    if not locked(file):
        file.close()
        raise LedgerError(
            f"{path}: another run has this ledger open; wait for its end, or give this run one of its own"
        )
    return file


def locked(file: BinaryIO) -> bool:
    """Lock a file; False if another process keeps it locked for as long as ``PATIENCE``."""
    if fcntl is None:
        return True
    last = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > last:
                return False
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return True
