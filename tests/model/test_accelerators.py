"""Apple's MPS and Intel's XPU, which no test machine has: asked for by name, at home there, without float64."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from lowmem_layers.engine.engine import Engine
from lowmem_layers.errors import BudgetError, ModelError, UsageError
from lowmem_layers.model import accelerators
from lowmem_layers.model.accelerators import check_offload, device_memory, is_seen, to_float64, untested_note
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.devices import describe_gpu, resolve_device, resolve_dtype, settle_arithmetic
from lowmem_layers.model.gpu import cap_allocator, device_overhead_bytes
from lowmem_layers.model.homes.staging import lane_to
from lowmem_layers.model.placement import GPU_CONTEXT_BYTES, ModelBytes, limits_now, place_with_states
from lowmem_layers.record.spec import StudySpec
from lowmem_layers.workers.on_ray import check_device
from tests.engine.conftest import random_items
from tests.fake_cuda import NoFloat64, fake_gpu, to_fake_cuda
from tests.families import tiny_model

GIB = 1 << 30
UNTESTED = pytest.mark.parametrize("name", ["mps", "xpu"])


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Let torch see a GPU of either kind, of which 6 of 8 GiB are free."""
    done: dict[str, object] = {}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda _: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda _: "A card")
    monkeypatch.setattr(torch.xpu, "set_per_process_memory_fraction", lambda part, *_: done.update(fraction=part))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", lambda part: done.update(fraction=part))
    memory = SimpleNamespace(available=100 * GIB, total=200 * GIB)
    monkeypatch.setattr(accelerators.psutil, "virtual_memory", lambda: memory)
    return done


@UNTESTED
def test_a_device_that_torch_does_not_see_is_refused(name: str) -> None:
    assert not is_seen(name)
    with pytest.raises(ModelError, match=f"--device {name}, but torch .* sees no GPU of (Apple|Intel)") as caught:
        resolve_device(name)  # pyright: ignore[reportArgumentType]
    assert "--device cpu" in caught.value.hint


@UNTESTED
def test_a_device_that_is_seen_is_taken_when_it_is_named(name: str, there: dict[str, object]) -> None:
    device = resolve_device(name)  # pyright: ignore[reportArgumentType]
    assert device.type == name
    assert resolve_device("auto").type == "cpu", "what nobody has tried is not taken unasked"
    assert resolve_dtype("auto", device) == torch.float16
    assert settle_arithmetic(device) == {}
    assert describe_gpu(device) == {
        "name": {"mps": "Apple GPU", "xpu": "A card"}[name], "memory_bytes": str(8 * GIB), "untested": "true",
    }  # fmt: skip
    assert device_memory(device) == (6 * GIB, 8 * GIB)
    assert device_overhead_bytes(device) == GPU_CONTEXT_BYTES
    cap_allocator(device, 4 * GIB)
    assert there["fraction"] == (4 * GIB - GPU_CONTEXT_BYTES) / (8 * GIB)
    assert f"--device {name} is untested" in untested_note(device)
    assert f"benchmarks.gpu --device {name}" in untested_note(device)
    assert untested_note(torch.device("cpu")) == untested_note(torch.device("cuda")) == ""


@UNTESTED
def test_weights_are_at_home_on_the_device_or_the_model_is_refused(name: str) -> None:
    device = torch.device(name)
    for offload in ("cpu", "disk"):
        with pytest.raises(UsageError, match=f"--offload {offload} with --device {name}"):
            check_offload(device, offload)
        check_offload(torch.device("cuda"), offload)
    check_offload(device, "auto")
    with pytest.raises(KeyError):
        lane_to(device, 1)
    sizes = ModelBytes(4 * GIB, GIB // 8, GIB // 8, GIB // 8, GIB // 8, GIB // 8)
    free = {"on_gpu": True, "cpu": None, "free_cpu": 64 * GIB, "streams": False}
    assert place_with_states(sizes, "auto", limits_now(gpu=None, free_gpu=8 * GIB, **free)).home == "device"
    with pytest.raises(BudgetError, match="on device") as caught:
        place_with_states(sizes, "auto", limits_now(gpu=None, free_gpu=4 * GIB, **free))
    assert "--offload" not in caught.value.hint
    assert caught.value.hint.startswith("the GPU has no more than 4.5 GiB free")
    with pytest.raises(BudgetError, match="on device") as caught:
        place_with_states(sizes, "auto", limits_now(gpu=4 * GIB, free_gpu=8 * GIB, **free))
    assert "--offload" not in caught.value.hint
    assert "--max-gpu-memory" in caught.value.hint
    streaming = limits_now(gpu=None, free_gpu=4 * GIB, **free | {"streams": True})
    assert place_with_states(sizes, "auto", streaming).home == "cpu"


@UNTESTED
def test_several_workers_are_refused_there(name: str) -> None:
    with pytest.raises(UsageError, match=f"--workers with --device {name}"):
        check_device(StudySpec(device=name).resolved())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["mps", pytest.param("xpu", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("there")
def test_a_sweep_makes_no_number_of_64_bits_there(name: str) -> None:
    model = DecoderModel(tiny_model("llama"))
    model.examine()
    # torch's own dispatch knows no such device in this build
    attention = "torch.nn.functional.scaled_dot_product_attention"
    by_hand = mock.patch(attention, lambda query, key, value, **_: torch.empty_like(query))
    watch, coalitions = NoFloat64(name), [(), (0,), (3,)]
    with fake_gpu() as mode:
        to_fake_cuda(model.module, mode, torch.float16, f"{name}:0")
        with by_hand, mode, watch, torch.no_grad():
            engine = Engine(model, layout="trie", budget_bytes=GIB)
            tree = engine._tree(coalitions)
            sweep = engine._sweep(tree, engine._inputs, lambda _: None)
            live = [sweep.start(batch) for batch in engine._batches(random_items(1), tree)]
            assert {each.states.device.type for each in live} == {name}
            sweep.visit_layers(live)
            values = [sweep._finish(each)[1] for each in live]
            assert {(each.device.type, each.dtype) for each in values} == {("cpu", torch.float64)}
            numbers = torch.ones(3, device=f"{name}:0")
            assert to_float64(numbers).device.type == "cpu"
            assert watch.seen == []
            numbers.double()
            assert watch.seen, "the watch sees one where there is one"
