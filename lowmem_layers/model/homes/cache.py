"""The cache of packed weights: quantise a checkpoint once, start at disk speed from then on.

One file an entry, named by a hash of the checkpoint's fingerprint and the packing; see `packed_file`. Beside it lies
what the model's examination found (`.examined.json`). The converted configs and tokenizers of GGUF files lie in
`texts`, a folder each.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowmem_layers._version import __version__
from lowmem_layers.errors import CheckpointError, UsageError
from lowmem_layers.model.homes.packed_file import FORMAT_VERSION, read_table

SUFFIX = ".packed"
EXAMINED = ".examined.json"
TEXTS = "texts"
ABOUT = "lowmem-layers.json"  # in a folder of texts: whose they are

_SAMPLE_BYTES = 65536
_PARTIAL = "partial: being written, or left by a process that was killed"


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache, or one folder of texts.

    `model` and `packing` are empty where they are not known; `state` then says why.
    """

    model: str
    packing: str
    n_bytes: int
    state: str
    path: Path


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


def examined_file(packed: Path) -> Path:
    """Name the file that keeps what the examination of a file's packed weights found."""
    return packed.with_suffix(EXAMINED)


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
    """List what the cache holds, largest first, with what can no longer be used."""
    folder, found = cache_folder(), []
    # 1) files of packed weights
    for path in sorted(folder.glob(f"*{SUFFIX}*")):
        model = packing = ""
        if path.suffix != SUFFIX:
            state = _PARTIAL
        else:
            try:
                about = read_table(path)["about"]
            except CheckpointError as error:
                state = error.message
            except PermissionError as error:
                state = f"cannot be read: {error.strerror}"
            else:
                model, state = about.get("model", ""), "ready"
                packing = " ".join(filter(None, (about.get("packing"), about.get("dtype"))))
        found.append(CacheEntry(model, packing, path.stat().st_size, state, path))
    # 2) what examinations of them found
    for path in sorted(folder.glob(f"*{EXAMINED}*")):
        state = "ready" if path.suffix == ".json" else _PARTIAL
        found.append(CacheEntry("", "what an examination found", path.stat().st_size, state, path))
    # 3) folders of converted configs and tokenizers
    for path in sorted((folder / TEXTS).glob("*")):
        model, state = "", _PARTIAL if path.suffix == ".partial" else "ready"
        if state == "ready":
            try:
                model = str(json.loads((path / ABOUT).read_text())["model"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                state = f"ready; its model is not known: {ABOUT} cannot be read ({type(error).__name__})"
        n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        found.append(CacheEntry(model, "" if state == _PARTIAL else "config and tokenizer", n_bytes, state, path))
    return sorted(found, key=lambda entry: -entry.n_bytes)


def clear_cache() -> int:
    """Delete all that the cache holds, partial files too. Units: returns the bytes that were freed.

    Raises:
        UsageError: something cannot be deleted.
    """
    freed = 0
    for entry in list_cache():
        try:
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{entry.path} cannot be deleted: {error.strerror}", "delete it by hand") from error
        freed += entry.n_bytes
    return freed
