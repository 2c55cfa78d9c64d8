"""What is settled of a GPU's arithmetic, and what of the GPU is recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations import sdpa_attention

from lowmem_layers.model import devices
from lowmem_layers.model.devices import describe_gpu, resolve_dtype, settle_arithmetic, settle_for_models
from tests.fake_cuda import fake_gpu

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def flags() -> Any:
    """Give the switches of torch's arithmetic as a function, and put them back afterwards."""
    matmul, cudnn, sdp = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cuda
    names = ["allow_tf32", "allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction"]
    before = [getattr(matmul, name) for name in names], cudnn.allow_tf32, sdp.cudnn_sdp_enabled()
    yield lambda: ([getattr(matmul, name) for name in names], cudnn.allow_tf32, sdp.cudnn_sdp_enabled())
    for name, value in zip(names, before[0], strict=True):
        setattr(matmul, name, value)
    cudnn.allow_tf32 = before[1]
    sdp.enable_cudnn_sdp(before[2])


def test_nothing_trades_a_gpus_accuracy_for_speed(flags: Any) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    before = flags()
    assert settle_arithmetic(CPU) == {}
    assert flags() == before
    assert set(settle_arithmetic(CUDA)) == {"tf32", "16-bit sums", "masked attention"}
    assert flags() == ([False, False, False], False, False)


def test_a_gpu_without_bfloat16_computes_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowmem_layers.model.devices.has_native_bfloat16", lambda device: False)
    assert resolve_dtype("auto", CUDA) == torch.float16
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("float32", CUDA) == torch.float32


@pytest.mark.parametrize("hip", [None, "6.4"])
def test_the_record_names_the_gpu_and_what_runs_on_it(monkeypatch: pytest.MonkeyPatch, hip: str | None) -> None:
    card = SimpleNamespace(name="A card", major=8, minor=9, total_memory=24 << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: card)
    monkeypatch.setattr("torch.version.hip", hip)
    monkeypatch.setattr(devices, "device_overhead_bytes", lambda _: 400 << 20)
    monkeypatch.setattr(devices, "driver_version", lambda: "580.95.05")
    found = describe_gpu(CUDA)
    assert found.get("driver") == ("580.95.05" if hip is None else None)
    assert found["context_bytes"] == str(400 << 20)
    assert (found["name"], found["capability"], found["memory_bytes"]) == ("A card", "8.9", str(24 << 30))
    assert found.get("rocm") == hip
    assert ("cuda" in found) == (hip is None)
    assert describe_gpu(CPU) == {}


def test_shared_keys_are_copied_for_each_head_on_cuda_alone(monkeypatch: pytest.MonkeyPatch, flags: Any) -> None:
    """A view of one head has stride 0, of which the memory-efficient kernel reads a wrong mask at 33 tokens."""
    monkeypatch.setattr(sdpa_attention, "repeat_kv", sdpa_attention.repeat_kv)  # put back at the end
    original = sdpa_attention.repeat_kv
    settle_for_models(CPU)
    assert sdpa_attention.repeat_kv is original
    settle_for_models(CUDA)
    settle_for_models(CUDA)  # once is enough
    with fake_gpu() as mode, mode:
        for device, heads, stride in (("cpu", 1, 0), ("cuda:0", 1, 33 * 16), ("cuda:0", 2, 33 * 16)):
            keys = torch.empty(3, 33, heads, 16, device=device).transpose(1, 2)
            repeated = sdpa_attention.repeat_kv(keys, 4)
            assert repeated.shape == (3, 4 * heads, 33, 16)
            assert repeated.stride(1) == stride, device
