"""Which model, in which precision, where: the request that `load_model` answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from lowmem_layers.errors import ModelError, UsageError

Quant = Literal["none", "4bit", "8bit"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Offload = Literal["auto", "none", "cpu", "disk"]

EMBEDDED_MODEL = "SmolLM2-135M-Instruct"

_MOST_BYTES = 2.0**63
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True)
class ModelSpec:
    """Say which model to load and what it may use.

    `model` is the embedded model's name, a local folder, a GGUF file or an id on the model hub.
    `quant` names the packed weights' width; a checkpoint that is already packed at that width keeps its own
    packing unless `requantize`.

    Units: `max_gpu_memory` and `max_cpu_memory` in bytes; None sets no limit. `free_cpu_memory` bytes are this
    process's share of what is free on the host, where others load at the same time (None: all of it).

    Raises:
        ModelError: a field has a value outside its choices.
    """

    model: str = EMBEDDED_MODEL
    quant: Quant = "none"
    dtype: DtypeName = "auto"
    device: DeviceName = "auto"
    offload: Offload = "auto"
    max_gpu_memory: int | None = None
    max_cpu_memory: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    requantize: bool = False
    cache: bool = True
    free_cpu_memory: int | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            choices = get_args(hints[field.name])
            value = getattr(self, field.name)
            if field.name in ("quant", "dtype", "device", "offload") and value not in choices:
                raise ModelError(f"{field.name} {value!r} does not exist", f"choose one of: {', '.join(choices)}")
        for name in ("max_gpu_memory", "max_cpu_memory"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ModelError(f"{name} is {limit} bytes", "give a positive size such as 8GiB, or leave it out")


def parse_bytes(text: str) -> int:
    """Read a size such as `8GiB`, `500MB` or `1073741824`.

    Units: KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000; the result is in bytes.

    Raises:
        UsageError: the text is not a size.
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size in bytes", "write it like 8GiB, 500MB or 1073741824")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    size = float(number) * base ** " KMGT".index(prefix.upper() or " ")
    if size >= _MOST_BYTES:  # `inf` too, which so many digits become
        raise UsageError(f"{text:.20} is more bytes than 64 bits can count", "write it like 8GiB or 500MB")
    return int(size)


def format_bytes(n_bytes: float) -> str:
    """Write a size in the largest binary unit that keeps it above one: `2.0 GiB`."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
