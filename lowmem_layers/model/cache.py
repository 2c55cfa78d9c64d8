"""The cache of packed weights: quantise a checkpoint once, start at disk speed from then on.

One file an entry, named by a hash of the checkpoint's fingerprint and the packing; see `packed_file`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem_layers._version import __version__
from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.packed_file import FORMAT_VERSION, read_table

SUFFIX = ".packed"

_SAMPLE_BYTES = 65536


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache. `model` and `packing` are empty where the file cannot be read; `state` then says why."""

    path: Path
    n_bytes: int
    model: str
    packing: str
    state: str


def cache_folder() -> Path:
    """Name the cache's folder: LOWMEM_LAYERS_CACHE, else lowmem-layers in XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("LOWMEM_LAYERS_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowmem-layers"


def cache_path(fingerprint: str, packing: str, dtype: str) -> Path:
    """Name the file for one checkpoint in one packing, as this version of the package would write it."""
    parts = json.dumps([fingerprint, packing, dtype, FORMAT_VERSION, __version__])
    return cache_folder() / (hashlib.sha256(parts.encode()).hexdigest()[:32] + SUFFIX)


def fingerprint_files(files: Sequence[Path]) -> str:
    """Identify weight files by names, sizes and samples of their content, without reading them whole.

    The samples are the first, middle and last 64 KiB of each file (the first holds the header or its beginning).
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def list_cache() -> list[CacheEntry]:
    """List the cache's files, largest first, with those that can no longer be used."""
    folder = cache_folder()
    found = sorted(folder.glob(f"*{SUFFIX}*")) if folder.is_dir() else []
    return sorted((_entry(path) for path in found), key=lambda entry: -entry.n_bytes)


def clear_cache() -> int:
    """Delete the cache's files, partial ones too. Units: returns the bytes that were freed."""
    freed = 0
    for entry in list_cache():
        entry.path.unlink(missing_ok=True)
        freed += entry.n_bytes
    return freed


def _entry(path: Path) -> CacheEntry:
    n_bytes = path.stat().st_size
    if path.suffix != SUFFIX:
        return CacheEntry(path, n_bytes, "", "", "partial: left by a process that was killed")
    try:
        about = read_table(path)["about"]
    except CheckpointError as error:
        return CacheEntry(path, n_bytes, "", "", error.message)
    return CacheEntry(path, n_bytes, about.get("model", ""), about.get("packing", ""), "ready")
