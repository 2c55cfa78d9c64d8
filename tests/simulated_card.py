"""A graphics card that computes real numbers on the host: `python -m tests.simulated_card LIBRARY MODULE ARGUMENTS…`

A build of torch without CUDA is given what it lacks: `simulated_card.cpp` makes tensors that lie on `cuda:0`, within a
memory that can run out; `torch.cuda` is replaced here by functions that answer as a card's would. So a command runs as
on CUDA from end to end: devices that are mixed, copies, what waits, the memory counted and the account of it, and real
numbers to compare. Not seen: speed, kernels of CUDA's own, what the driver is asked (NVML), how CUDA begins, and
streams, which do everything at once here.

`SIMULATED_CARD_BYTES` is the card's memory; with `SIMULATED_CARD_LEAVES`, each tile is left so many bytes beside what
is allocated when it begins.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_CONTEXT_BYTES = 300 << 20  # what a context takes of a card


def build(folder: Path) -> Path:
    """Compile the device's library, for the torch that is installed."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    root, library = Path(found.origin).parent, folder / "simulated_card.so"
    places = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}"]
    options = ["-std=c++20", "-O1", "-fPIC", "-shared", "-w", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    source = str(Path(__file__).with_suffix(".cpp"))
    subprocess.run(["g++", source, "-o", str(library), *places, *options], check=True)
    return library


class Stream:
    """A queue whose work is done when it is given."""

    def __init__(self, device: Any = None, priority: int = 0) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """A point in time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.is_timed, self.at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: Event) -> float:
        assert self.is_timed
        assert later.is_timed
        return (later.at - self.at) * 1000


def begin(library: str) -> None:
    """Let torch, which must not be imported yet, believe in the card."""
    assert "torch" not in sys.modules
    card = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    card.card_count.restype = ctypes.c_int64
    card.card_limit.argtypes = [ctypes.c_int64]
    import torch

    with contextlib.suppress(ImportError):
        pass  # now: once CUDA is seen, it looks for its kernels
    importlib.import_module("bitsandbytes")  # now: once CUDA is seen, it looks for its kernels
    card.card_begin()
    total = int(os.environ.get("SIMULATED_CARD_BYTES", 24 << 30))
    card.card_limit(total - _CONTEXT_BYTES)
    streams = [Stream()]

    def count(name: str) -> int:
        return card.card_count(name.encode())

    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        try:
            yield
        finally:
            streams.pop()

    def set_fraction(fraction: float, device: Any = None) -> None:
        if device is not None and torch.device(device).index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        card.card_limit(min(int(fraction * total), total - _CONTEXT_BYTES))

    about = SimpleNamespace(
        name="Simulated card", uuid="none", total_memory=total, major=8, minor=9, multi_processor_count=1
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None,
        "device_count": lambda: 1, "current_device": lambda: 0, "device": lambda _: contextlib.nullcontext(),
        "get_device_properties": lambda _=None: about, "get_device_capability": lambda _=None: (8, 9),
        "get_device_name": lambda _=None: about.name, "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda _=None: (total - _CONTEXT_BYTES - count("reserved"), total),
        "memory_stats": lambda _=None: {"num_alloc_retries": 0, "num_ooms": count("failed")},
        "memory_allocated": lambda _=None: count("allocated"), "memory_reserved": lambda _=None: count("reserved"),
        "max_memory_allocated": lambda _=None: count("peak"), "max_memory_reserved": lambda _=None: count("reserved"),
        "reset_peak_memory_stats": lambda _=None: card.card_reset_peak(), "empty_cache": card.card_release,
        "reset_accumulated_memory_stats": lambda _=None: card.card_forget_failures(),
        "set_per_process_memory_fraction": set_fraction, "synchronize": lambda _=None: None,
        "set_sync_debug_mode": lambda mode: card.card_warn(int(mode != "default")), "_sleep": lambda _: None,
        "Stream": Stream, "Event": Event, "stream": entered, "current_stream": lambda _=None: streams[-1],
        "manual_seed_all": lambda _: None,
    }  # fmt: skip
    for name, answer in answers.items():
        assert hasattr(torch.cuda, name), f"torch.cuda has no {name} any more"
        setattr(torch.cuda, name, answer)
    torch.Tensor.record_stream = lambda *_: None
    torch._C._accelerator_emptyHostCache = lambda: None  # the pinned memory here is not kept
    # torch's own profiler of kernels, and a benchmark of products that would take a CPU minutes
    profile = torch.profiler.profile
    torch.profiler.profile = lambda activities: profile(activities=[torch.profiler.ProfilerActivity.CPU])
    from lowmem_layers.forecast import machine
    from tests.fake_cuda import attention_on_cuda

    torch.nn.functional.scaled_dot_product_attention = attention_on_cuda
    machine.is_gpu = lambda _: False
    if left := os.environ.get("SIMULATED_CARD_LEAVES"):
        _leave(int(left), card)


def _leave(n_bytes: int, card: Any) -> None:
    """Let another program take the card's memory, but for so many bytes, as soon as tiles are scored."""
    from lowmem_layers.engine.engine import Engine

    score = Engine.score

    def crowded(self: Engine, *of: Any) -> Any:
        card.card_limit(card.card_count(b"allocated") + n_bytes)
        return score(self, *of)

    Engine.score = crowded


if __name__ == "__main__":
    begin(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
