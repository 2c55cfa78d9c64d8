"""A mixture with one expert at a time is the mixture with all of them in the slot, in less memory."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lowmem_layers.model import ModelSpec, load, load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.change import QUANT_FORMATS
from lowmem_layers.model.checkpoint.skeleton import build_skeleton
from lowmem_layers.model.formats import DENSE, FOUR_BIT, INT8, Packed, unpack
from lowmem_layers.model.homes.experts import slot_numbers
from lowmem_layers.model.homes.home import MemoryHome
from lowmem_layers.model.homes.places import is_quantised, streamed_places
from lowmem_layers.model.homes.rounding import RoundedWeights
from lowmem_layers.model.homes.store import StreamingStore, Visit
from lowmem_layers.model.memory import peak_bytes, resident_bytes
from lowmem_layers.model.placement import MemoryLimits, ModelBytes, Placement, place, place_with_states
from tests.families import tiny_model
from tests.model.conftest import save_model

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"]
PACK = {"none": DENSE.pack, "4bit": FOUR_BIT.pack, "8bit": INT8.pack}
BOTH = frozenset({"attn", "ffn"})
CPU = torch.device("cpu")


def packed_model(family: str, quant: str, dtype: torch.dtype, *, one_expert: bool) -> DecoderModel:
    """Build a tiny mixture whose weights are packed in memory."""
    module = tiny_model(family, dtype=dtype)
    shape = DecoderModel(module).shape
    places = list(streamed_places(dissect(module), "model.layers", module.dtype))
    home = MemoryHome(CPU)
    for layer in range(3):
        for kind in ("attn", "ffn"):
            group = [p for p in places if (p.layer, p.kind) == (layer, kind)]
            weights = {p.key: getattr(p.module, p.attribute).data for p in group}
            packed = {p.key: (PACK[quant] if is_quantised(p) else DENSE.pack)(weights[p.key]) for p in group}
            home.add((layer, kind), packed)
    store = StreamingStore(places, home, dtype, CPU, one_expert=one_expert)
    return DecoderModel(module, store=store, shape=shape)


def logits_of(model: DecoderModel) -> torch.Tensor:
    with torch.inference_mode(), model.streaming():
        return model.module(torch.arange(24).view(2, 12)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quant", PACK)
@pytest.mark.parametrize("family", MIXTURES)
def test_one_at_a_time_is_all_at_once_to_the_bit(family: str, quant: str, dtype: torch.dtype) -> None:
    together = packed_model(family, quant, dtype, one_expert=False)
    alone = packed_model(family, quant, dtype, one_expert=True)
    assert alone.store.slot_bytes < together.store.slot_bytes  # type: ignore[attr-defined]
    found, expected = logits_of(alone), logits_of(together)
    if family == "gpt_oss":  # its sigmoid, over rows that lie apart, rounds differently in another number of rows
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(found, expected)
    assert alone.store.describe()["experts_in_slot"] == "one at a time"


@pytest.mark.parametrize("family", MIXTURES)
def test_on_several_threads_it_is_all_at_once_but_for_rounding(family: str) -> None:
    """Products of a few rows are cut differently among threads than the grouped product of all experts."""
    torch.set_num_threads(2)
    together = packed_model(family, "4bit", torch.float32, one_expert=False)
    alone = packed_model(family, "4bit", torch.float32, one_expert=True)
    torch.testing.assert_close(logits_of(alone), logits_of(together), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_one_at_a_time_is_the_dequantised_models_own_loop_over_experts(family: str) -> None:
    """The reference: transformers' eager loop, over weights that were quantised and unpacked beforehand."""
    alone = packed_model(family, "4bit", torch.float32, one_expert=True)
    reference = tiny_model(family)
    reference.config._experts_implementation = "eager"
    for p in streamed_places(dissect(reference), "model.layers", reference.dtype):
        weight = getattr(p.module, p.attribute)
        if is_quantised(p):
            out = torch.empty_like(weight)
            unpack(FOUR_BIT.pack(weight.data), out)
            weight.data = out
    with torch.inference_mode():
        expected = reference(torch.arange(24).view(2, 12)).logits
    torch.testing.assert_close(logits_of(alone), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_rounded_one_at_a_time_as_all_at_once(family: str) -> None:
    found = []
    for one_expert in (True, False):
        model = packed_model(family, "none", torch.float32, one_expert=one_expert)
        for visit in model.store.sweep([Visit(0, BOTH)]):
            layer = dissect(model.module).layers[visit.layer]
            weights = RoundedWeights(layer, "ffn", QUANT_FORMATS["nf4"], torch.float32)
            hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
            before, after = [], []
            for outputs, change in ((before, nullcontext()), (after, weights.standing_in()), (before, nullcontext())):
                with change, torch.inference_mode():
                    out = layer.layer.get_submodule(layer.feed_forward[0])(hidden)
                outputs.append(out[0] if isinstance(out, tuple) else out)
            assert torch.equal(*before)
            assert not torch.allclose(before[0], after[0], rtol=1e-2)
            found.append(after[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_another_weight_of_one_expert_would_be_seen() -> None:
    together = packed_model("mixtral", "none", torch.float32, one_expert=False)
    module = tiny_model("mixtral")
    module.model.layers[1].mlp.experts.down_proj.data[1] *= 1.001
    with torch.inference_mode():
        assert not torch.allclose(logits_of(together), module(torch.arange(24).view(2, 12)).logits, rtol=1e-6)


def test_the_module_is_its_own_again_after_the_visit() -> None:
    model = packed_model("gpt_oss", "4bit", torch.float32, one_expert=True)
    experts = model.module.model.layers[1].mlp.experts
    for _ in model.store.sweep([Visit(1, BOTH)]):
        assert experts.gate_up_proj.shape == (4, 32, 96)
        assert experts.gate_up_proj.isnan().all()  # no weights of an expert that was not asked for
        assert "forward" in experts.__dict__
    assert "forward" not in experts.__dict__
    assert experts.gate_up_proj.numel() == 0
    assert experts.num_experts == 4


def test_a_failure_inside_an_expert_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model("mixtral", "4bit", torch.float32, one_expert=True)
    experts = model.module.model.layers[0].mlp.experts
    monkeypatch.setattr(experts, "_apply_gate", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits_of(model)
    monkeypatch.undo()
    assert experts.num_experts == 4
    assert torch.isfinite(logits_of(model)).all()


def test_a_dense_model_has_nothing_to_divide() -> None:
    places = list(streamed_places(dissect(tiny_model("llama")), "model.layers", torch.bfloat16))
    assert not any(p.n_experts for p in places)
    assert slot_numbers(places, one_expert=True) == slot_numbers(places, one_expert=False)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_a_loaded_mixture_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: Any) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "qwen3_moe")
    spec = ModelSpec(str(tmp_path / "model"), "4bit", "bfloat16", "cpu", offload)
    together = load_model(spec)

    def cramped(*args: Any, **kwargs: Any) -> Placement:
        return replace(place_with_states(*args, **kwargs), one_expert=True)

    monkeypatch.setattr(load, "place_with_states", cramped)
    lines: list[str] = []
    alone = load_model(spec, lines.append)
    assert "they are brought in one at a time" in lines[-1]
    assert alone.describe()["experts_in_slot"] == "one at a time"
    assert torch.equal(logits_of(alone), logits_of(together))


GIB = 1 << 30
SIZES = ModelBytes(
    packed=24 * GIB, resident=GIB, slots=3 * GIB, layer_packed=GIB, layer_source=GIB, process=GIB, expert_slots=GIB
)


@pytest.mark.parametrize(
    ("gpu", "home", "one_expert"), [(32, "device", False), (26, "cpu", False), (7, "cpu", False), (5, "cpu", True)]
)
def test_one_at_a_time_only_where_all_do_not_fit(gpu: int, home: str, one_expert: bool) -> None:
    found = place(SIZES, "auto", MemoryLimits(True, gpu * GIB, 64 * GIB))
    assert (found.home, found.one_expert) == (home, one_expert)
    assert found.gpu_bytes <= gpu * GIB


PEAK = """
import os
from tests.model.test_experts import grow
for one_expert in (True, False):  # each in a process of its own, that starts with everything imported
    if (child := os.fork()) == 0:
        print(*grow(one_expert=one_expert), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def grow(*, one_expert: bool) -> tuple[int, int]:
    """Visit a large mixture once; give the growth of the peak and the slot's size. Units: bytes."""
    packed, places, module = large_mixture()
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is occupied now
    store = StreamingStore(places, packed, torch.float32, CPU, one_expert=one_expert)
    with torch.inference_mode():
        for _ in store.sweep([Visit(0, BOTH)]):
            assert torch.isfinite(module.model.layers[0].mlp(torch.ones(1, 16, 512))).all()
    return peak_bytes() - before, store.slot_bytes


def large_mixture() -> tuple[MemoryHome, list[Any], Any]:
    """Build a mixture of 16 experts of 3 M numbers each, in eight bits, with nothing else of size."""
    torch.set_num_threads(1)
    config = transformers.MixtralConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=32, num_local_experts=16,
    )  # fmt: skip
    module = build_skeleton(config, torch.float32)
    places = list(streamed_places(dissect(module), "model.layers", module.dtype))
    home = MemoryHome(CPU)
    for kind in ("attn", "ffn"):
        home.add((0, kind), {p.key: eights(p.shape) for p in places if p.kind == kind})
    return home, places, module


def eights(shape: tuple[int, ...]) -> Packed:
    levels = torch.ones(shape, dtype=torch.int8)
    return Packed(INT8, shape, {"weight": levels, "scale": torch.full((*shape[:-1], 1), 1e-3)})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, to ask for the peak of a stretch")
def test_peak_memory_shows_it() -> None:
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    one, one_slot, everything, whole_slot = (int(word) for word in done.stdout.split())
    assert whole_slot > 10 * one_slot > 100 << 20
    assert everything > whole_slot
    assert one < one_slot + (40 << 20)  # and what unpacking a piece takes
