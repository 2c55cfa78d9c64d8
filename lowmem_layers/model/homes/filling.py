"""Bring a model's packed weights to their home: from the checkpoint, or from the cache if they are there already."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.safetensors_reader import RESIDENT, LayerReader
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import DENSE
from lowmem_layers.model.homes.home import DiskHome, Home, MemoryHome
from lowmem_layers.model.homes.packed_file import (
    OtherVersionError,
    PackedFile,
    PackedFileWriter,
    UnwritableError,
    write_packed_file,
)
from lowmem_layers.model.homes.store import SLOT_KINDS, GroupKey, Place
from lowmem_layers.model.memory import only_new_objects_collected, release_freed_memory

Announce = Callable[[str], None]
OnLayer = Callable[[int, int], None]  # how many decoder layers are read, and of how many


def uncounted(_done: int, _n_layers: int) -> None:
    """Take no notice of a layer."""


@dataclass(frozen=True)
class Filling:
    """Say which weights are brought to which home.

    `path` is the cache's file, or None where nothing is to be kept; `home_device` is None for a home on disk.
    """

    model: Any
    places: Sequence[Place]
    n_layers: int
    home_device: torch.device | None
    path: Path | None
    about: Mapping[str, str]


def fill_home(
    filling: Filling, open_reader: Callable[[], LayerReader], announce: Announce, on_layer: OnLayer = uncounted
) -> Home:
    """Fill the model's resident tensors and return the home of all others.

    Raises:
        CheckpointError: the checkpoint is damaged or contradicts its config.
        OtherVersionError: the cache's file was kept by another version of this package.
        DiskFullError: the disk is full, for the cache or for a home on disk.
        UnwritableError: the home is on disk, in a folder that cannot be written to.
    """
    # from the cache, if the weights are there: now, or when another process has packed them that was waited for
    if (home := _kept(filling, announce)) is not None:
        return home
    with _alone(filling.path, announce):
        return _kept(filling, announce) or _made(filling, open_reader(), announce, on_layer)


def _kept(filling: Filling, announce: Announce) -> Home | None:
    """Take the weights from the cache; None where they are not there, or are damaged.

    Raises:
        OtherVersionError: the cache's file was kept by another version of this package.
    """
    path = filling.path
    if path is None or not path.is_file():
        return None
    try:
        home = _from_cache(filling, path)
    except OtherVersionError:
        raise
    except CheckpointError as error:
        announce(f"{error.message}; it is made again")
        path.unlink(missing_ok=True)
        return None
    announce(f"packed weights from the cache: {path}")
    return home


@contextmanager
def _alone(path: Path | None, announce: Announce) -> Iterator[None]:
    """Let one process at a time pack the weights of a file of the cache; others wait for it.

    Where the file system has no locks, or nothing can be written, each packs for itself.
    """
    if path is None:
        yield
        return
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            announce("another process packs these weights: waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not let an open file be deleted
            Path(lock.lock_file).unlink()
        lock.release()


def _made(filling: Filling, reader: LayerReader, announce: Announce, on_layer: OnLayer) -> Home:
    """Read the weights from the checkpoint and pack them, into the cache too where that can be written to.

    Raises:
        DiskFullError: the disk is full, for the cache or for a home on disk.
        UnwritableError: the home is on disk, in a folder that cannot be written to.
    """
    path = filling.path
    # 1) onto the disk: into the cache, or else into a file that goes with the home
    if filling.home_device is None:
        folder = None
        if path is None:
            folder = Path(tempfile.mkdtemp(prefix="lowmem-layers-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            path = folder / "weights.packed"
        with write_packed_file(path, filling.about) as writer:
            _read_all(filling, reader, None, writer, announce, on_layer)
        home = DiskHome(PackedFile(path))
        if folder is not None:  # several runs of one process would fill the disk
            weakref.finalize(home, shutil.rmtree, folder, ignore_errors=True)
        return home
    # 2) into memory, and into the cache where that can be written to
    memory = MemoryHome(filling.home_device)
    with ExitStack() as stack:
        writer = None
        try:
            writer = stack.enter_context(write_packed_file(path, filling.about)) if path is not None else None
        except UnwritableError as error:
            announce(f"{error.message}; going on without the cache")
        _read_all(filling, reader, memory, writer, announce, on_layer)
    return memory


def _from_cache(filling: Filling, path: Path) -> Home:
    """Take everything from a packed file, if it holds this model's weights and all of them are sound."""
    file = PackedFile(path)
    expected = {place.key for place in filling.places}
    found = {weight.key for key, layout in file.layouts.items() if key[0] != RESIDENT for weight in layout.weights}
    if expected != found:
        raise CheckpointError(f"the packed weights in {path} are another model's", "delete the file")
    if filling.home_device is None:
        home = DiskHome(file)
    else:
        home = MemoryHome(filling.home_device)
        for key in file.layouts:
            if key[0] != RESIDENT:
                home.add(key, file.read(key))
    for key in [key for key in file.layouts if key[0] == RESIDENT]:
        for name, packed in file.read(key).items():
            set_tensor(filling.model, name, packed.parts["weight"])
    filling.model.tie_weights()
    return home


def _read_all(
    filling: Filling, reader: LayerReader, memory: MemoryHome | None, writer: PackedFileWriter | None,
    announce: Announce, on_layer: OnLayer,
) -> None:  # fmt: skip
    """Read a checkpoint layer by layer, into a packed file, into memory, or into both."""
    # 1) embedding, final norm and head
    reader.read_resident()
    release_freed_memory()
    # 2) the sublayers, of which only one layer's are in memory on their way
    groups: dict[GroupKey, list[str]] = {}
    for place in filling.places:
        groups.setdefault((place.layer, place.kind), []).append(place.key)
    with only_new_objects_collected():
        for layer in range(filling.n_layers):
            packed = reader.read_layer(layer)
            for kind in SLOT_KINDS:
                if keys := groups.get((layer, kind)):
                    group = {key: packed.pop(key) for key in keys}
                    for home in (memory, writer):
                        if home is not None:
                            home.add((layer, kind), group)
                    del group  # not to be held while the next layer is read
            release_freed_memory()
            on_layer(layer + 1, filling.n_layers)
    for line in reader.notes():
        announce(line)
    # 3) a file also holds what stays in the model, each tensor once; one by one, since each is copied on its way
    if writer is not None:
        streamed = {place.key for place in filling.places}
        tied = set(getattr(filling.model, "all_tied_weights_keys", None) or {})
        for name, value in filling.model.state_dict().items():
            if name not in streamed | tied:
                writer.add((RESIDENT, name), {name: DENSE.pack(value)})
