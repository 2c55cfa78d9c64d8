"""What memory this process takes now and took at most, for the display."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Units: bytes; the GPU's are None where torch uses none."""

    host: int
    host_peak: int
    gpu: int | None = None
    gpu_peak: int | None = None


def read_memory() -> Memory:
    """Ask the system, and torch where it is imported and computes on a GPU."""
    import psutil

    if "torch" not in sys.modules or "lowmem_layers.model.memory" not in sys.modules:
        host = psutil.Process().memory_info().rss
        return Memory(host, host)
    import torch

    from lowmem_layers.model.memory import peak_bytes, resident_bytes

    if not torch.cuda.is_initialized():
        return Memory(resident_bytes(), peak_bytes())
    return Memory(resident_bytes(), peak_bytes(), torch.cuda.memory_reserved(), torch.cuda.max_memory_reserved())
