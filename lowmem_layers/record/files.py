"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_layers.errors import RecordError, UsageError

TEMPORARY = ".partial"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, bring it to the disk, and give it its name.

    Raises:
        RecordError: the file cannot be written (no room, no permission); nothing is left of it.
    """
    partial = path.with_name(path.name + TEMPORARY)
    discard(partial)  # a link of that name would be written through
    try:
        write(partial)
        _to_disk(partial)
        partial.replace(path)
        _to_disk(path.parent)
    except OSError as error:
        discard(partial)
        raise cannot_write(path, error) from error
    except BaseException:
        discard(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all.

    Raises:
        RecordError: the file cannot be written.
    """
    data = text.encode("utf-8")

    def fill(partial: Path) -> None:
        partial.write_bytes(data)

    write_whole(path, fill)


def is_text(text: str) -> bool:
    """Tell whether a text can be written to any file: no zero byte, and no half of a surrogate pair.

    Python makes such halves of bytes that are no UTF-8, in a command line or in a file's name.
    """
    return _NO_TEXT.search(text) is None


def check_text(what: str, text: Any) -> None:
    """Refuse a text that cannot be written to a file.

    Raises:
        UsageError: it holds a zero byte, or bytes that are no UTF-8.
    """
    if isinstance(text, str) and not is_text(text):
        raise UsageError(f"{what} is no text: {text[:40]!a}", "name files and options in UTF-8, without zero bytes")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        RecordError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def refuse_links(folder: Path) -> None:
    """Refuse to write where links lead elsewhere: a run folder may come from somebody else.

    Raises:
        RecordError: the folder, or something in it, is a link.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise RecordError(f"{path} is a link, and what is written there would leave the run", "remove it")


def discard(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the reason why it could not be written is the one worth telling


def cannot_write(path: Path, error: OSError) -> RecordError:
    """Say in one line that a file cannot be written, and why."""
    reason = error.strerror or str(error) or type(error).__name__
    return RecordError(
        f"cannot write {path}: {reason}",
        "make room or choose another place with --out; the same command then goes on where it stopped",
    )


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
