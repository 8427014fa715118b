"""Files that are written whole: a crash at any moment leaves the old file or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from dplip.errors import ConfigurationError


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by new content, on disk when this returns; a crash leaves the old file or the new one.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.part")  # one name, so that crashes leave at most one behind
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole; its folder is made if need be.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigurationError(
            f"path={str(path)!r} cannot be written ({error}): name a file in a folder that you can write to"
        ) from error


def sync_directory(directory: Path) -> None:
    """Put a folder's names on disk, on systems where a folder can be synced."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
