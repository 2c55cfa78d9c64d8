"""Write a checkpoint layer by layer: safetensors in shards, config, tokenizer; the folder is there whole or not at all.

In memory are one shard and one decoder layer at most.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.errors import UsageError

SHARD_BYTES = 1 << 30
_INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Collect tensors and write them out, a shard whenever `shard_bytes` are together."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._shards: list[list[str]] = []  # the names of each shard's tensors
        self.n_bytes = 0

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add tensors, under the names that they have in the checkpoint."""
        for name, tensor in tensors.items():
            self._waiting[name] = tensor.detach().contiguous().clone()  # not a view of what is filled anew
            self._waiting_bytes += tensor.numel() * tensor.element_size()
            if self._waiting_bytes >= self._shard_bytes:
                self._write()

    def finish(self) -> None:
        """Write what is left, give the shards their names, and write their index where there are several."""
        self._write()
        n_shards = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards, 1):
            name = f"model-{number:05}-of-{n_shards:05}.safetensors" if n_shards > 1 else "model.safetensors"
            self._part(number).rename(self._folder / name)
            weight_map |= dict.fromkeys(names, name)
        if n_shards > 1:
            index = {"metadata": {"total_size": self.n_bytes}, "weight_map": weight_map}
            (self._folder / _INDEX).write_text(json.dumps(index, indent=2))

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _write(self) -> None:
        from safetensors.torch import save_file

        if not self._waiting:
            return
        self._shards.append(list(self._waiting))
        save_file(self._waiting, self._part(len(self._shards)), metadata={"format": "pt"})
        self.n_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that gets the wanted name at the end of the `with` block, or vanishes on an error.

    Raises:
        UsageError: the folder is there already and not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already", "name a new folder with -o")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another folder with -o"
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}", hint) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def config_document(config: Any, architecture: str, dtype: str) -> dict[str, Any]:
    """Give a config as config.json holds it, without a quantisation that the written weights no longer have."""
    document: dict[str, Any] = config.to_dict()
    for gone in ("quantization_config", "_name_or_path", "torch_dtype"):
        document.pop(gone, None)
    return {**document, "architectures": [architecture], "dtype": dtype}
