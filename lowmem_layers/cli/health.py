"""What a machine has of what a run needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lowmem_layers._version import __version__

_NEEDED = ("torch", "transformers", "bitsandbytes", "accelerate", "safetensors", "gguf", "datasets", "pyarrow")
_LEAST_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    good: bool = True
    hint: str = ""


def examine() -> list[Finding]:
    """Look at Python, libraries, memory, the GPU, the disk and the embedded model."""
    import psutil

    from lowmem_layers.errors import ModelError
    from lowmem_layers.model.checkpoint.embedded import embedded_model_path
    from lowmem_layers.model.spec import format_bytes

    try:
        embedded = Finding("embedded model", str(embedded_model_path().name))
    except ModelError as error:
        embedded = Finding("embedded model", error.message, False, error.hint)
    free = shutil.disk_usage(Path.cwd()).free
    hint = "make room, or write runs elsewhere with --out"
    return [
        Finding("lowmem-layers", __version__),
        Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}"),
        *(_library(name) for name in _NEEDED),
        Finding("cpu", f"{os.cpu_count()} cores, {platform.machine()}"),
        Finding("memory", format_bytes(psutil.virtual_memory().total)),
        _gpu(),
        Finding("disk here", f"{format_bytes(free)} free", free >= _LEAST_DISK_BYTES, hint),
        embedded,
    ]


def _library(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed", False, f"pip install {name}")


def _gpu() -> Finding:
    if "torch" not in sys.modules and _library("torch").good is False:
        return Finding("gpu", "unknown without torch")
    import torch

    from lowmem_layers.model.spec import format_bytes

    if not torch.cuda.is_available():
        return Finding("gpu", "none that torch sees: runs use the CPU")
    properties = torch.cuda.get_device_properties(0)
    return Finding("gpu", f"{properties.name}, {format_bytes(properties.total_memory)}")
