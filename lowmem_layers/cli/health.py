"""What a machine has of what a run needs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from lowmem_layers._version import __version__

_NEEDED = ("torch", "transformers", "bitsandbytes", "safetensors", "gguf", "datasets", "pyarrow")
_LEAST_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    good: bool = True
    hint: str = ""


def examine(device: str = "auto", *, measure: bool = False) -> list[Finding]:
    """Look at Python, libraries, memory, the GPU, the disk and the embedded model; run a few kernels on a device.

    `measure` times each kernel that a run is made of, at a run's own shapes.

    Raises:
        ModelError: torch sees no such device.
    """
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
        *_kernels(device, measure=measure),
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

    from lowmem_layers.model.accelerators import device_memory, is_seen, name_of, untested_note
    from lowmem_layers.model.spec import format_bytes

    seen = [torch.device(name) for name in ("cuda", "mps", "xpu") if is_seen(name)]
    if not seen:
        return Finding("gpu", "none that torch sees: runs use the CPU")
    note = untested_note(seen[0])
    words = f"{name_of(seen[0])}, {format_bytes(device_memory(seen[0])[1])}"
    return Finding("gpu", f"{words}; {note}" if note else words)


def _kernels(name: str, *, measure: bool) -> list[Finding]:
    """Run what a run is made of on the chosen device: is it right, and how fast?"""
    if not all(_library(each).good for each in ("torch", "transformers", "bitsandbytes")):
        return []  # said already
    import tempfile

    from lowmem_layers.forecast.ceilings import check_kernels, measure_ceilings
    from lowmem_layers.forecast.machine import measure_machine
    from lowmem_layers.model.devices import dtype_name, resolve_device, resolve_dtype, settle_arithmetic

    device = resolve_device(cast("Any", name))
    dtype = resolve_dtype("auto", device)
    settle_arithmetic(device)
    try:
        wrong = check_kernels(device, dtype)
    except RuntimeError as error:  # torch was built without this card's kernels, or its driver is too old
        return [Finding("kernels", str(error).splitlines()[0], False, "update the driver and torch, or --device cpu")]
    where = f"{device.type} in {dtype_name(dtype)}"
    hint = "computing here gives wrong numbers: update the driver, torch and bitsandbytes, or use --device cpu"
    right = f"NF4, a product and copies are right on {where}"
    found = [Finding("kernels", "; ".join(wrong) or right, not wrong, hint)]
    if not measure:
        speed = measure_machine(device, dtype, seconds=0.2)
        there, here, disk = (
            f"{rate / 1e9:.3g}" for rate in (speed.host_to_device_bytes_s, speed.moved_bytes_s, speed.disk_bytes_s)
        )
        copies = f"{there} from memory to the GPU, {here} on it" if speed.is_gpu else f"{here} in memory"
        words = f"{2 * speed.macs_s / 1e12:.3g} TFLOP/s of products; GB/s: {copies}, {disk} from disk"
        return [*found, Finding("speed", words)]
    with tempfile.TemporaryDirectory(prefix="lowmem-layers-") as folder:
        ceilings = list(measure_ceilings(device, dtype, Path(folder)))
    return found + [Finding(each.what, f"{each.value:.3g} {each.unit}") for each in ceilings]
