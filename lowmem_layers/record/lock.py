"""One process at a time writes a run folder. The lock ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lowmem_layers.errors import RecordError
from lowmem_layers.record.files import cannot_write

LOCK = ".lock"


# What the system says where a file system has no locks (some network file systems)
_NO_LOCKS = {getattr(errno, name) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS") if hasattr(errno, name)}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder's lock.

    The file names its holder. Where the file system has no locks, that name is the lock: it counts while a process of
    this number lives on this machine, and for another machine's process until the file is removed.

    Raises:
        RecordError: another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # a link could lead to a file that is no lock
        handle = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise cannot_write(path, error) from error
    with handle:
        ours = f"{os.getpid()} {platform.node()}"
        holder = _holder(handle)
        taken = _take(handle)
        if taken is None:
            taken = not holder or holder == ours or _is_gone(holder)
        if not taken:
            pid, _, host = holder.partition(" ")
            elsewhere = f" on {host}" if host and host != platform.node() else ""
            raise RecordError(
                f"{folder} is being written by another process{f' (process {pid}{elsewhere})' if pid else ''}",
                f"wait until that run ends, or choose another folder with --out"
                f"{f'; if no run is going on there, remove {path}' if elsewhere else ''}",
            )
        try:
            handle.seek(0)
            handle.truncate(0)
            handle.write(f"{ours}\n")
            handle.flush()
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a broken disk; the next process finds that this one is gone
                handle.truncate(0)


def _holder(handle: IO[str]) -> str:
    """Read who holds the lock: `PID HOST`, `PID` alone from an earlier version, or nothing."""
    try:
        handle.seek(0)
        found = handle.read(300).strip()
    except OSError:  # Windows lets nobody read what another process has locked
        return ""
    return found if found.split(" ")[0].isdigit() else ""


def _is_gone(holder: str) -> bool:
    """Tell whether a process of this machine has ended; of another machine's nothing is known."""
    pid, _, host = holder.partition(" ")
    if host != platform.node() or os.name == "nt":  # where there always are locks, and `kill` does kill
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it lives, and belongs to somebody else
        return False
    return False


def _take(handle: IO[str]) -> bool | None:
    """Take the operating system's lock on an open file; tell whether nobody else has it (None: there are no locks)."""
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True
