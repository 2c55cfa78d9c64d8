"""One file that holds all of a model's packed weights: a home on disk, and a cache of the work of packing.

The groups come first, each starting at a page; then a JSON table of their layouts and checksums; then the table's
length and a magic number. The file is written under another name and renamed when it is complete, so it exists whole
or not at all; a group's checksum is verified the first time it is read.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import torch

from lowmem_layers.errors import BudgetError, CheckpointError, UsageError
from lowmem_layers.model.formats import Packed
from lowmem_layers.model.homes.layout import Layout, bytes_of, lay_out, layout_from_json, layout_to_json, write_packed
from lowmem_layers.model.homes.store import GroupKey
from lowmem_layers.model.spec import format_bytes

FORMAT_VERSION = 2

_MAGIC = b"LOWMEMW1"
_PAGE_BYTES = 4096
_ABANDONED_S = 600.0


class DiskFullError(BudgetError):
    """The packed weights do not fit on the disk."""


class OtherVersionError(CheckpointError):
    """The packed weights were kept by another version of this package."""


class UnwritableError(UsageError):
    """The packed weights' folder cannot be written to."""


class PackedFileWriter:
    """Append groups to a file that is being written; `write_packed_file` makes one."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file
        self._groups: dict[str, Any] = {}

    def add(self, key: GroupKey, packed: Mapping[str, Packed]) -> None:
        """Append one group.

        Raises:
            DiskFullError: the disk is full.
        """
        layout = lay_out(packed)
        buffer = torch.zeros(layout.n_bytes, dtype=torch.uint8)  # zeros, so that gaps are the same every time
        write_packed(layout, packed, buffer)
        content = bytes_of(buffer)
        with _explained(self._path):
            self._write(b"\0" * (-self._file.tell() % _PAGE_BYTES))
            entry = {"offset": self._file.tell(), "crc32": zlib.crc32(content), "layout": layout_to_json(layout)}
            self._write(content)
        self._groups[_text(key)] = entry

    def finish(self, about: Mapping[str, Any]) -> None:
        """Append the table and the mark of a complete file, and wait until all of it is on the disk."""
        table = json.dumps({"version": FORMAT_VERSION, "about": dict(about), "groups": self._groups}).encode()
        with _explained(self._path):
            self._write(table + len(table).to_bytes(8, "little") + _MAGIC)
            os.fsync(self._file.fileno())

    def _write(self, content: bytes | memoryview) -> None:
        """Write all of the content: the system may take less at once."""
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]


@contextmanager
def write_packed_file(path: Path, about: Mapping[str, Any]) -> Iterator[PackedFileWriter]:
    """Write a file, group after group; after the `with` block it is there as a whole, or not at all.

    Raises:
        DiskFullError: the disk is full.
        UnwritableError: the folder cannot be made or written to.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Delete what killed processes left of this file: nobody has written there for ten minutes, nor is there a
            # writer. (The time, since a cache may be shared with machines whose processes are not seen here.)
            for old in path.parent.glob(f"{path.name}.*.partial"):
                writer = old.name.split(".")[-2]
                is_old = time.time() - old.stat().st_mtime > _ABANDONED_S
                if is_old and not (writer.isdigit() and psutil.pid_exists(int(writer))):
                    old.unlink(missing_ok=True)
            file = partial.open("wb", buffering=0)  # so that closing has nothing left to write
    except OSError as error:
        raise UnwritableError(
            f"the packed weights cannot be kept in {path.parent}: {error.strerror}",
            "point LOWMEM_LAYERS_CACHE to a folder of yours, or use --no-cache",
        ) from error
    try:
        with file:
            writer = PackedFileWriter(path, file)
            yield writer
            writer.finish(about)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class PackedFile:
    """Read groups of a complete file.

    Raises:
        CheckpointError: the file is damaged or truncated.
        OtherVersionError: it is from another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        table = read_table(path)
        self.about: dict[str, Any] = table["about"]
        self.layouts: dict[GroupKey, Layout] = {}
        self._places: dict[GroupKey, tuple[int, int]] = {}
        for name, entry in table["groups"].items():
            kind, _, layer = name.rpartition(".")
            self.layouts[int(layer), kind] = layout_from_json(entry["layout"])
            self._places[int(layer), kind] = (entry["offset"], entry["crc32"])
        self._verified: set[GroupKey] = set()
        self._lock = threading.Lock()
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)

    def read_into(self, key: GroupKey, buffer: torch.Tensor) -> None:
        """Read one group's bytes to the start of `buffer`.

        Raises:
            CheckpointError: the file ends early, or the bytes are not those that were written.
        """
        offset, checksum = self._places[key]
        view = bytes_of(buffer[: self.layouts[key].n_bytes])
        done = 0
        while done < len(view):
            got = self._read_at(offset + done, view[done:])
            if not got:
                raise damaged(self.path, f"it ends inside {_text(key)}")
            done += got
        if key not in self._verified:
            if zlib.crc32(view) != checksum:
                raise damaged(self.path, f"the weights of {_text(key)} have changed since they were written")
            self._verified.add(key)

    def _read_at(self, offset: int, view: memoryview) -> int:
        """Fill the view, or a part of it, from a place in the file. Units: bytes; returns how many were read."""
        if hasattr(os, "preadv"):  # neither on Windows nor on older versions of macOS
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:  # the file has one position, which all threads share
            self._file.seek(offset)
            return self._file.readinto(view)

    def read(self, key: GroupKey) -> dict[str, Packed]:
        """Read one group into fresh memory."""
        buffer = torch.empty(self.layouts[key].n_bytes, dtype=torch.uint8)
        self.read_into(key, buffer)
        return self.layouts[key].views(buffer)


def read_table(path: Path) -> dict[str, Any]:
    """Read the table at the end of a file.

    Raises:
        CheckpointError: the file is damaged or truncated.
        OtherVersionError: it is from another version.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16))
        tail = file.read(16)
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MAGIC or length > size - 16:
            raise damaged(path, "it is truncated or not one of ours")
        file.seek(size - 16 - length)
        try:
            table = json.loads(file.read(length))
        except ValueError as error:
            raise damaged(path, "its table cannot be read") from error
    if table.get("version") != FORMAT_VERSION:
        raise OtherVersionError(
            f"the packed weights in {path} cannot be used: it is of version {table.get('version')}, "
            f"this is version {FORMAT_VERSION}",
            "lowmem-layers models --cache --clear deletes what was kept, --no-cache goes without it",
        )
    return table


def damaged(path: Path, reason: str) -> CheckpointError:
    """Build the error for a packed file that cannot be used."""
    return CheckpointError(f"the packed weights in {path} cannot be used: {reason}", "delete it; it is made again")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.is_dir())).free
        raise DiskFullError(
            f"the disk is full: no room for the packed weights in {path.parent} ({format_bytes(free)} free)",
            "free some space, point LOWMEM_LAYERS_CACHE to another disk, or use --no-cache",
        ) from error


def _text(key: GroupKey) -> str:
    """Name a group, in the table and in messages: `ffn.3`."""
    return f"{key[1]}.{key[0]}"
