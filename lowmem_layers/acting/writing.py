"""Write a checkpoint layer by layer: safetensors in shards, config, tokenizer; the folder is there whole or not at all.

In memory is one decoder layer at most.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from lowmem_layers.errors import UsageError

SHARD_BYTES = 4 << 30
_INDEX = "model.safetensors.index.json"
_HEADER_BYTES = 1 << 18  # kept free at a shard's start for its header, which is known at its end
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class ShardWriter:
    """Write tensors out as they come, a new shard whenever `shard_bytes` are together.

    Source of the format: safetensors' own description: eight bytes of length, a JSON header that may end in spaces, the
    tensors without gaps. Nothing but the tensor at hand is in memory.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._shards: list[dict[str, dict[str, Any]]] = []  # of each shard its header
        self._file: IO[bytes] | None = None
        self._written = self._header_bytes = 0  # of the open shard
        self.n_bytes = 0

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Add tensors, under the names that they have in the checkpoint."""
        for name, tensor in tensors.items():
            flat = tensor.detach().contiguous().view(-1)
            entry = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}
            room = len(json.dumps({name: entry})) + 64  # with the offsets
            # readers look at numbers in place: each tensor begins at a multiple of its numbers' size
            if self._header_bytes + room > _HEADER_BYTES or self._written % flat.element_size():
                self._close()
            if self._file is None:
                self._open()
            assert self._file is not None
            self._file.write(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
            end = self._written + flat.numel() * flat.element_size()
            self._shards[-1][name] = {**entry, "data_offsets": [self._written, end]}
            self.n_bytes += end - self._written
            self._written, self._header_bytes = end, self._header_bytes + room
            if self._written >= self._shard_bytes:
                self._close()

    def finish(self) -> None:
        """Write what is left, give the shards their names, and write their index where there are several."""
        self._close()
        n_shards = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, header in enumerate(self._shards, 1):
            name = f"model-{number:05}-of-{n_shards:05}.safetensors" if n_shards > 1 else "model.safetensors"
            self._part(number).rename(self._folder / name)
            weight_map |= dict.fromkeys(header, name)
        if n_shards > 1:
            index = {"metadata": {"total_size": self.n_bytes}, "weight_map": weight_map}
            (self._folder / _INDEX).write_text(json.dumps(index, indent=2))

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"

    def _open(self) -> None:
        self._shards.append({})
        self._file = self._part(len(self._shards)).open("wb")
        self._file.seek(_HEADER_BYTES)
        self._written, self._header_bytes = 0, 64

    def _close(self) -> None:
        """Put the header in front of the open shard."""
        if self._file is None:
            return
        with self._file as file:
            header = json.dumps({"__metadata__": {"format": "pt"}, **self._shards[-1]}).encode()
            file.seek(0)
            file.write((_HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(_HEADER_BYTES - 8))
        self._file = None


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
