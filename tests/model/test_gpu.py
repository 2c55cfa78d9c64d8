"""What a process takes of a GPU besides tensors: the driver's counters before and after, where they can be true."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowmem_layers.model import gpu
from lowmem_layers.model.placement import GPU_CONTEXT_BYTES, ModelBytes, limits_now, place_with_states

CUDA = torch.device("cuda")
MIB = 1 << 20
FIRST_KERNELS, USED_BYTES = gpu._run_first_kernels, gpu._used_bytes  # what the fixture stands in for


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Stand in for a card that has given 24 GiB in all; the test says what the driver and the allocator count."""
    state = {"used": 300 * MIB, "reserved": 0, "fraction": float("nan")}
    monkeypatch.setattr(gpu, "_before", {})
    monkeypatch.setattr(gpu, "_overheads", {})
    monkeypatch.setattr(gpu, "_used_bytes", lambda: {"abc": state["used"]})
    monkeypatch.setattr(gpu, "_run_first_kernels", lambda _: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: state["reserved"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 24 << 30))
    # torch's own function runs, since it refuses what it does not take: a device without an index
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda f, _: state.update(fraction=f), raising=False)
    for name in gpu._ALLOCATOR:
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    return state


def test_the_context_is_what_the_driver_counts_more_than_the_allocator(card: dict[str, float]) -> None:
    gpu.prepare_gpu()
    card |= {"used": 300 * MIB + 420 * MIB + 64 * MIB, "reserved": 64 * MIB}
    assert gpu.device_overhead_bytes(CUDA) == 420 * MIB
    card["used"] = 0
    assert gpu.device_overhead_bytes(CUDA) == 420 * MIB  # measured once
    gpu.cap_allocator(CUDA, 6 << 30)
    assert card["fraction"] == ((6 << 30) - 420 * MIB) / (24 << 30)
    gpu.cap_allocator(CUDA, None)
    assert card["fraction"] == 1.0


@pytest.mark.parametrize("index", [None, 0, 1])
def test_any_of_torchs_names_for_a_device_is_capped(card: dict[str, float], index: int | None) -> None:
    gpu.cap_allocator(torch.device("cuda") if index is None else torch.device("cuda", index), 12 << 30)
    assert card["fraction"] == ((12 << 30) - GPU_CONTEXT_BYTES) / (24 << 30)


@pytest.mark.parametrize(("native", "narrow"), [(True, torch.bfloat16), (False, torch.float16)])
def test_no_kernel_is_loaded_that_the_card_refuses(
    monkeypatch: pytest.MonkeyPatch, native: bool, narrow: torch.dtype
) -> None:
    """A GTX 1080 or P100 raises CUBLAS_STATUS_NOT_SUPPORTED at a product of bfloat16."""
    seen: set[torch.dtype] = set()
    by_cudnn: list[bool] = []
    attention = torch.nn.functional.scaled_dot_product_attention
    ones = torch.ones

    def on_host(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        seen.add(dtype)
        return ones(*shape, dtype=dtype)

    def attend(*args: Any, **more: Any) -> torch.Tensor:
        by_cudnn.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(torch, "ones", on_host)
    monkeypatch.setattr(torch, "zeros", on_host)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    FIRST_KERNELS(CUDA)
    assert seen == {torch.float32, narrow}
    assert by_cudnn == [False, False]


@pytest.mark.parametrize("used_mib", [300, 290, 300 + 30_000])
def test_what_cannot_be_a_context_is_not_taken_for_one(card: dict[str, float], used_mib: int) -> None:
    gpu.prepare_gpu()
    card["used"] = used_mib * MIB
    assert gpu.device_overhead_bytes(CUDA) == GPU_CONTEXT_BYTES


def test_without_a_driver_that_answers_it_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_used_bytes", dict)
    gpu.prepare_gpu()
    assert gpu.device_overhead_bytes(CUDA) == GPU_CONTEXT_BYTES
    assert gpu.device_overhead_bytes(torch.device("cpu")) == 0


class Nvml:
    """NVIDIA's library with two cards, the second of which may not be looked at."""

    open = 0

    def nvmlInit_v2(self) -> int:
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = 0x1000 + index
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, _length: int) -> int:
        text.value = b"GPU-0123-abc" if handle.value == 0x1000 else b"GPU-other"
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.used = 5 << 30
        return 0 if handle.value == 0x1000 else 4  # no permission: the parent of a MIG instance in a container

    def nvmlSystemGetDriverVersion(self, text: Any, _length: int) -> int:
        text.value = b"580.95.05"
        return 0


def test_the_drivers_counters_are_read_by_the_names_that_torch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml()
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: library)
    assert USED_BYTES() == {"0123-abc": 5 << 30}
    assert gpu.driver_version() == "580.95.05"
    assert library.open == 0


def test_without_nvidias_library_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("no such library")))
    assert USED_BYTES() == {}
    assert gpu.driver_version() == ""


def test_segments_grow_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    gpu.prepare_gpu()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64"
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    gpu._before.clear()
    gpu.prepare_gpu()
    assert "expandable_segments:True" in (os.environ.get(name) for name in gpu._ALLOCATOR)


@pytest.mark.parametrize(
    ("release", "grows"), [("6.8.0-41-generic", True), ("6.6.87.2-microsoft-standard-WSL2", False)]
)
def test_segments_do_not_grow_under_windows(monkeypatch: pytest.MonkeyPatch, release: str, grows: bool) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.release", lambda: release)
    gpu.prepare_gpu()
    assert any(name in os.environ for name in gpu._ALLOCATOR) == grows


def test_a_smaller_context_leaves_more_of_a_limit_for_states() -> None:
    sizes = ModelBytes(
        packed=4 << 30, resident=1 << 30, slots=400 * MIB, layer_packed=100 * MIB, layer_source=0, process=0
    )
    left = []
    for context in (300 * MIB, 600 * MIB):
        limits = limits_now(on_gpu=True, gpu=8 << 30, cpu=None, free_gpu=20 << 30, free_cpu=1 << 40, context=context)
        left.append(place_with_states(sizes, "auto", limits).states_bytes)
    assert left[0] - left[1] == 300 * MIB
