"""What this process and this machine have of memory, asked of the system."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from lowmem_layers.model.accelerators import device_memory

_PIECE_NUMBERS = 1 << 22
_SHORTAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",
    "STATUS_NOT_INITIALIZED when calling `cublasCreate",  # for a thread's handle there is no room on a full card
    "can't start new thread",
)


def resident_bytes() -> int:
    """Count the memory this process occupies now (its resident set)."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """Count the most memory this process has occupied so far; where no system call says it, what it occupies now."""
    # psutil knows the peak on Windows alone. On Linux the kernel says it in /proc; `getrusage`, which is all there is
    # elsewhere, would also count what the parent process occupied when it started this one.
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    try:
        import resource
    except ImportError:
        return resident_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_account(device: torch.device) -> dict[str, int]:
    """Say what memory was taken at most, for the run's record.

    `host_peak_bytes` is the resident set's, since the process began. Of CUDA, torch's allocator is asked, since a model
    was last released: `gpu_peak_bytes` are its tensors', `gpu_reserved_peak_bytes` what it took from the driver for
    them; `gpu_retries` counts how often it handed back what it had kept before it found room, `gpu_out_of_memory` how
    often it found none.
    """
    account = {"host_peak_bytes": peak_bytes()}
    if device.type != "cuda":
        return account
    counted = torch.cuda.memory_stats(device)
    return {
        **account,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(device),
        "gpu_reserved_peak_bytes": torch.cuda.max_memory_reserved(device),
        "gpu_retries": counted.get("num_alloc_retries", 0),
        "gpu_out_of_memory": counted.get("num_ooms", 0),
    }


def release_freed_memory() -> None:
    """Hand memory that was freed back to the system, where the C library (glibc) can be asked to.

    Packing allocates and frees pieces of a layer between pieces that stay; without this the holes add up over layers.
    transformers' conversion leaves tensors in cycles of references, which are looked for first.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def release_model() -> None:
    """Hand back what a model took that nobody holds any more, on the host and on cards, before another one is placed.

    torch keeps freed memory of a card to itself; what is free is asked of the card.
    """
    release_freed_memory()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # the next run's account is its own
        torch.cuda.reset_accumulated_memory_stats()
        # pinned host memory is kept by an allocator of its own; the first name is new, the second as old as we accept
        empty = getattr(torch._C, "_accelerator_emptyHostCache", None) or getattr(torch._C, "_host_emptyCache", None)
        if empty is not None:
            empty()


@contextmanager
def only_new_objects_collected() -> Iterator[None]:
    """Keep what exists already out of garbage collection for the length of a `with` block.

    Each collection walks over all objects of the process, which are a million once torch and transformers are
    imported. While layers are loaded only the new ones can be garbage. Where the caller has frozen objects himself, all
    is left as it is, since thawing would undo his choice.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def is_shortage(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out: torch and CUDA's libraries have several for it.

    Source: torch 2.13, c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp, ATen/cuda/CUDABlas.cpp.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)


def is_machines_fault(error: BaseException) -> bool:
    """Tell whether an exception says something of the machine, and nothing of the code that it came out of.

    A GPU that failed once (AcceleratorError) fails in everything after that.
    """
    failed = getattr(torch, "AcceleratorError", ())  # newer than the oldest torch we accept
    return is_shortage(error) or isinstance(error, failed)


def all_finite(tensor: torch.Tensor) -> bool:
    """Look for NaN and infinities piece by piece: torch.isfinite takes another copy of what it looks at."""
    pieces = tensor.reshape(-1).split(_PIECE_NUMBERS)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


def available_host_bytes() -> int:
    """Count the host memory that can still be taken without swapping."""
    return psutil.virtual_memory().available


def available_device_bytes(device: torch.device) -> int:
    """Count the memory that can still be taken on the computing device."""
    return device_memory(device)[0]
