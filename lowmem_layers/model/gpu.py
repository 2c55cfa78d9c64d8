"""What a process takes of a GPU besides its tensors, measured; and the allocator held to the memory that is given.

A CUDA context with torch's kernels takes 300 to 600 MB by card, driver and libraries, which no counter of torch shows.
The driver (NVML) is asked how much of each card is taken before CUDA is touched and once the first kernels have run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowmem_layers.model.accelerators import device_memory, is_gpu
from lowmem_layers.model.placement import GPU_CONTEXT_BYTES

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the name up to torch 2.8
_SETTING = "expandable_segments:True"
_LEAST_BYTES = 64 << 20  # no context is smaller: less means that the driver's counters cannot be believed

_before: dict[str, int] = {}
_overheads: dict[torch.device, int] = {}


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def prepare_gpu() -> None:
    """Look at the cards before CUDA is initialised, and ask torch for segments that grow.

    Tiles differ in size; without such segments the allocator keeps blocks of sizes that are not asked for again. What
    the user has set stays as it is. Afterwards, this does nothing. Under Windows (WSL), some drivers fail when a
    segment is mapped (pytorch/pytorch, issue 192330).
    """
    if torch.cuda.is_initialized() or _before:
        return
    grows = sys.platform == "linux" and "microsoft" not in platform.release().lower() and torch.version.hip is None
    if grows and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)]] = _SETTING
    _before.update(_used_bytes())


def device_overhead_bytes(device: torch.device) -> int:
    """Count what this process takes of a GPU besides tensors, once the kernels of a run were loaded; 0 on a CPU.

    It is measured on CUDA. Elsewhere as much is assumed as where the driver cannot be asked.

    Where the driver cannot be asked, 512 MiB are assumed. Other programs that start or end in these seconds are
    counted, too; what cannot be true is not taken.
    """
    if device.type != "cuda":
        return GPU_CONTEXT_BYTES if is_gpu(device) else 0
    if device not in _overheads:
        _run_first_kernels(device)
        name = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        now = _used_bytes()
        found = 0
        if name in _before and name in now:
            found = now[name] - _before[name] - torch.cuda.memory_reserved(device)
        _overheads[device] = found if _LEAST_BYTES <= found <= 4 * GPU_CONTEXT_BYTES else GPU_CONTEXT_BYTES
    return _overheads[device]


def _run_first_kernels(device: torch.device) -> None:
    """Load what a run uses: products (cuBLAS and its workspace), masked attention, norms, softmax, indexing."""
    # cards older than Volta refuse products of bfloat16, which no run uses there
    narrow = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    for dtype in (torch.float32, narrow):
        x = torch.ones(1, 4, 64, 64, dtype=dtype, device=device)  # (B, heads, T, D)
        mask = torch.zeros(1, 1, 64, 64, dtype=dtype, device=device)
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):  # cuDNN's takes memory, and no run uses it
            y = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask) @ x
        torch.nn.functional.silu(torch.nn.functional.rms_norm(y, (64,))).log_softmax(-1)[:, [0, 1]].add_(1)
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()


@contextmanager
def _nvml() -> Iterator[Any]:
    """Open NVIDIA's library that knows of cards what CUDA does not say; None where it is missing."""
    nvml: Any = None
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        nvml = library if library.nvmlInit_v2() == 0 else None
    try:
        yield nvml
    finally:
        if nvml is not None:
            nvml.nvmlShutdown()


def driver_version() -> str:
    """Give the version of NVIDIA's driver, as nvidia-smi shows it; nothing where NVML is missing."""
    text = ctypes.create_string_buffer(80)
    with _nvml() as nvml:
        if nvml is not None:
            nvml.nvmlSystemGetDriverVersion(text, len(text))
    return text.value.decode()


def _used_bytes() -> dict[str, int]:
    """Ask NVML how much of each card is taken, by the card's UUID as torch writes it; nothing where NVML is missing."""
    found: dict[str, int] = {}
    count, handle, memory = ctypes.c_uint(), ctypes.c_void_p(), _Memory()
    name = ctypes.create_string_buffer(96)
    with _nvml() as nvml:
        if nvml is None:
            return found
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            good = (
                nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
                and nvml.nvmlDeviceGetUUID(handle, name, len(name)) == 0
                and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
            )
            if good:
                found[name.value.decode().removeprefix("GPU-")] = int(memory.used)
    return found


def cap_allocator(device: torch.device, n_bytes: int | None) -> None:
    """Hold torch's allocator to what `n_bytes` leave beside the context: more is out of memory, though the card has it.

    None sets no limit.
    """
    if is_gpu(device):
        total = device_memory(device)[1]
        left = total if n_bytes is None else max(0, n_bytes - device_overhead_bytes(device))
        # CUDA's refuses a device without an index, which means the current one; Apple's takes none, since there is one
        which = () if device.index is None or device.type == "mps" else (device,)
        torch.get_device_module(device).set_per_process_memory_fraction(min(1.0, left / total), *which)
