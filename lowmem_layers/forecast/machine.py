"""How fast a machine multiplies, copies and reads: a few seconds' measurement, or a card's data sheet."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lowmem_layers.errors import UsageError
from lowmem_layers.model.accelerators import device_memory, is_gpu, kind_of, name_of, wait_for

_FILE_BYTES = 64 << 20
_COPY_BYTES = 64 << 20


@dataclass(frozen=True)
class Machine:
    """A machine's speeds. Units: multiply-adds a second in the compute dtype; bytes a second.

    `host_to_device_bytes_s` is what brings packed weights from RAM to the computing device, `disk_bytes_s` from disk to
    RAM, `moved_bytes_s` what the device reads and writes of its own memory. `measured` tells a measurement from a data
    sheet, `streams` whether weights may live elsewhere than on the device.
    """

    name: str
    macs_s: float
    host_to_device_bytes_s: float
    disk_bytes_s: float
    moved_bytes_s: float
    memory_bytes: int
    measured: bool
    is_gpu: bool
    streams: bool = True


_DISK_BYTES_S = 3e9  # an NVMe drive
SHARE_OF_PEAK = 0.75  # of the data sheet's dense bfloat16 peak that large matrix products reach
SHARE_OF_BANDWIDTH = 0.8  # of its memory's that elementwise operations reach
_SHARE_OF_PCIE = 0.8  # of the bus' nominal speed that copies from pinned memory reach
SHEET_SHARES = f"{100 * SHARE_OF_PEAK:.0f} % of its peak, {100 * SHARE_OF_BANDWIDTH:.0f} % of its memory's bandwidth"

# Dense bfloat16 TFLOP/s with float32 accumulation, GiB of memory and its GB/s, nominal GB/s of the bus in one
# direction. Sources:
# NVIDIA's whitepapers on GA102, Ada and RTX Blackwell (tables of the last pages), and the data sheets of A10, A100,
# H100 (SXM), H200, L4, L40S and T4 (which has no bfloat16: its float16). GeForce cards do twice their float32 rate at
# boost clock; laptop cards at their highest power. Memory of the data centre's cards is what the driver reports, error
# correction on, which takes a sixteenth of GDDR6.
_PCIE3, _PCIE4_X8, _PCIE4, _PCIE5 = 15.8, 15.8, 31.5, 63.0
_SHEETS = {
    "rtx-3060": (25.5, 12, 360, _PCIE4),
    "rtx-3070": (40.6, 8, 448, _PCIE4),
    "rtx-3080": (59.5, 10, 760, _PCIE4),
    "rtx-3090": (71.2, 24, 936, _PCIE4),
    "rtx-4060": (30.2, 8, 272, _PCIE4_X8),
    "rtx-4060-laptop": (29.1, 8, 256, _PCIE4_X8),
    "rtx-4060-ti": (44.1, 8, 288, _PCIE4_X8),
    "rtx-4060-ti-16gb": (44.1, 16, 288, _PCIE4_X8),
    "rtx-4070": (58.3, 12, 504, _PCIE4),
    "rtx-4070-ti": (80.2, 12, 504, _PCIE4),
    "rtx-4080": (97.5, 16, 717, _PCIE4),
    "rtx-4090": (165.2, 24, 1008, _PCIE4),
    "rtx-5070": (61.7, 12, 672, _PCIE5),
    "rtx-5080": (112.6, 16, 960, _PCIE5),
    "rtx-5090": (209.5, 32, 1792, _PCIE5),
    "t4": (65.0, 15, 320, _PCIE3),
    "l4": (121.0, 22.4, 300, _PCIE4),
    "l40s": (362.0, 44.9, 864, _PCIE4),
    "a10": (125.0, 22.4, 600, _PCIE4),
    "a100-40gb": (312.0, 40, 1555, _PCIE4),
    "a100": (312.0, 80, 2039, _PCIE4),
    "h100": (989.0, 79.6, 3350, _PCIE5),
    "h200": (989.0, 141, 4800, _PCIE5),
}

CARDS = {
    name: Machine(
        name,
        macs_s=tflops * 1e12 / 2 * SHARE_OF_PEAK,
        host_to_device_bytes_s=bus * 1e9 * _SHARE_OF_PCIE,
        disk_bytes_s=_DISK_BYTES_S,
        moved_bytes_s=bandwidth * 1e9 * SHARE_OF_BANDWIDTH,
        memory_bytes=int(memory_gib * 2**30),
        measured=False,
        is_gpu=True,
    )
    for name, (tflops, memory_gib, bandwidth, bus) in _SHEETS.items()
}


def named_card(name: str) -> Machine:
    """Look a card up.

    Raises:
        UsageError: the card is not in the table.
    """
    if name not in CARDS:
        raise UsageError(f"there is no card {name!r} in the table", f"known are {', '.join(CARDS)}")
    return CARDS[name]


def measure_machine(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> Machine:
    """Time a matrix product, a copy and a read of a fresh file for about `seconds` each."""
    on_gpu, streams = is_gpu(device), kind_of(device).streams
    # 1) products and copies; a copy brings packed weights from memory to the computing device
    macs_s = measure_products(device, dtype, seconds=seconds)
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=on_gpu and streams)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    copied_s = rate_of(lambda: target.copy_(source, non_blocking=True), device, seconds / 2) * _COPY_BYTES
    here = target.clone()
    moved_s = rate_of(lambda: here.copy_(target), device, seconds / 2) * 2 * _COPY_BYTES
    # 2) a fresh file
    with tempfile.TemporaryDirectory(prefix="lowmem-layers-") as folder:
        disk_s = read_fresh_file(Path(folder))
    # 3) the machine's memory and name
    name = name_of(device) if on_gpu else f"this CPU, {torch.get_num_threads()} threads"
    return Machine(name, macs_s, copied_s, disk_s, moved_s, device_memory(device)[1], True, on_gpu, streams)


def read_fresh_file(folder: Path) -> float:
    """Write a file into a folder and read it once. Units: bytes a second.

    The system is asked to forget the file in between; where it does not, this is an upper bound.
    """
    path = folder / "lowmem-layers-probe"
    try:
        path.write_bytes(os.urandom(1 << 20) * (_FILE_BYTES >> 20))
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(8 << 20):
                pass
            return _FILE_BYTES / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)


def measure_products(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """Time bare matrix products, large enough for the device, for about `seconds`. Units: multiply-adds a second."""
    rows, width = (8192, 4096) if is_gpu(device) else (1024, 2048)
    a = torch.randn(rows, width, dtype=dtype, device=device)
    b = torch.randn(width, width, dtype=dtype, device=device)
    return rate_of(lambda: torch.mm(a, b), device, seconds) * a.shape[0] * b.shape[0] * b.shape[1]


def rate_of(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Count how often a step runs a second, after one run to warm up."""
    step()
    start = wait_and_read_clock(device)
    done = 0
    while (now := wait_and_read_clock(device)) - start < seconds or not done:
        for _ in range(4):
            step()
        done += 4
    return done / (now - start)


def wait_and_read_clock(device: torch.device) -> float:
    """Read the clock when the device has done all it was given. Units: seconds."""
    wait_for(device)
    return time.perf_counter()
