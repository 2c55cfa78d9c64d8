"""Bring a model's packed weights to their home: from the checkpoint, or from the cache if they are there already."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.safetensors_reader import RESIDENT, LayerReader
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import Packed, dense
from lowmem_layers.model.homes.home import DiskHome, Home, MemoryHome
from lowmem_layers.model.homes.packed_file import OtherVersionError, PackedFile, PackedFileWriter, UnwritableError
from lowmem_layers.model.homes.store import SLOT_KINDS, GroupKey, Place
from lowmem_layers.model.memory import release_freed_memory

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Furniture:
    """What is to be brought where.

    `path` is the cache's file, or None where nothing is to be kept; `home_device` is None for a home on disk.
    """

    model: Any
    places: Sequence[Place]
    n_layers: int
    home_device: torch.device | None
    path: Path | None
    about: Mapping[str, str]


def furnish(task: Furniture, open_reader: Callable[[], LayerReader], announce: Announce) -> Home:
    """Fill the model's resident tensors and return the home of all others.

    Raises:
        CheckpointError: the checkpoint is damaged or contradicts its config.
        OtherVersionError: the cache's file was kept by another version of this package.
        DiskFullError: the disk is full, for the cache or for a home on disk.
        UnwritableError: the home is on disk, in a folder that cannot be written to.
    """
    if task.path is not None and task.path.is_file():
        try:
            home = _from_cache(task, task.path)
        except OtherVersionError:
            raise
        except CheckpointError as error:
            announce(f"{error.message}; it is made again")
            task.path.unlink(missing_ok=True)
        else:
            announce(f"packed weights from the cache: {task.path}")
            return home
    try:
        return _from_checkpoint(task, open_reader(), task.path or _private_path(task))
    except UnwritableError as error:
        if task.home_device is None:
            raise
        announce(f"{error.message}; going on without the cache")
        return _from_checkpoint(task, open_reader(), None)


def _from_cache(task: Furniture, path: Path) -> Home:
    file = PackedFile(path)
    expected = {place.key for place in task.places}
    found = {weight.key for key, layout in file.layouts.items() if key[0] != RESIDENT for weight in layout.weights}
    if expected != found:
        raise CheckpointError(f"the packed weights in {path} are another model's", "delete the file")
    home = DiskHome(file) if task.home_device is None else _into_memory(file, task.home_device)
    for key in [key for key in file.layouts if key[0] == RESIDENT]:
        for name, packed in file.read(key).items():
            set_tensor(task.model, name, packed.parts["weight"])
    task.model.tie_weights()
    return home


def _into_memory(file: PackedFile, device: torch.device) -> MemoryHome:
    home = MemoryHome(device)
    for key in file.layouts:
        if key[0] != RESIDENT:
            home.add(key, file.read(key))
    return home


def _from_checkpoint(task: Furniture, reader: LayerReader, path: Path | None) -> Home:
    memory = MemoryHome(task.home_device) if task.home_device is not None else None
    with ExitStack() as stack:
        writer = stack.enter_context(PackedFileWriter(path, task.about)) if path is not None else None
        reader.read_resident()
        release_freed_memory()
        for key, packed in _groups(task, reader):
            if memory is not None:
                memory.add(key, packed)
            if writer is not None:
                writer.add(key, packed)
        if writer is not None:
            for name, value in _resident(task).items():  # one by one, since each is copied on its way
                writer.add((RESIDENT, name), {name: value})
    if memory is not None:
        return memory
    if path is None:
        raise ValueError("a home on disk needs a path")
    return DiskHome(PackedFile(path))


def _groups(task: Furniture, reader: LayerReader) -> Iterator[tuple[GroupKey, dict[str, Packed]]]:
    by_group: dict[GroupKey, list[str]] = {}
    for place in task.places:
        by_group.setdefault((place.layer, place.kind), []).append(place.key)
    for layer in range(task.n_layers):
        packed = reader.read_layer(layer)
        for kind in SLOT_KINDS:
            if keys := by_group.get((layer, kind)):
                yield (layer, kind), {key: packed.pop(key) for key in keys}
        release_freed_memory()


def _resident(task: Furniture) -> dict[str, Packed]:
    """Collect the tensors that stay in the model, each once."""
    streamed = {place.key for place in task.places}
    tied = set(getattr(task.model, "all_tied_weights_keys", None) or {})
    state = task.model.state_dict()
    return {name: dense.pack(value) for name, value in state.items() if name not in streamed and name not in tied}


def _private_path(task: Furniture) -> Path | None:
    """Choose a file that goes with this process, for a home on disk that is not to be cached."""
    if task.home_device is not None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="lowmem-layers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "weights.packed"
