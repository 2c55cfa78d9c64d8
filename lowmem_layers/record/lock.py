"""One process at a time writes a run folder. The lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lowmem_layers.errors import RecordError
from lowmem_layers.record.files import cannot_write

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    Raises:
        RecordError: another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with handle:
        if not _take(handle):
            handle.seek(0)
            pid = handle.read().strip()
            holder = f" (process {pid})" if pid.isdigit() else ""
            raise RecordError(
                f"{folder} is being written by another process{holder}",
                "wait until that run ends, or choose another folder with --out",
            )
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def _take(handle: IO[str]) -> bool:
    """Take the operating system's lock on an open file; tell whether nobody else has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
