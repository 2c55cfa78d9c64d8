"""Everything in a GGUF file that changes numbers is applied, or the file is refused by that thing's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lowmem_layers.errors import LowmemLayersError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.checkpoint.gguf_config import FAMILIES
from lowmem_layers.model.checkpoint.gguf_keys import HARMLESS, NEUTRAL
from lowmem_layers.model.homes.store import Visit
from tests import families
from tests.model.conftest import tiny_config
from tests.model.gguf_files import logits, read_model, write_gguf

LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def loud_model(config: Any) -> Any:
    """Build a model whose every sublayer, norm and bias changes the logits visibly."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if value.dim() >= 2 and "embed" not in name:
            value.mul_(4.0)
        elif value.dim() == 1:
            value.add_(torch.randn_like(value) * 0.1)
    return model


def check_equal(path: Path, model: Any) -> None:
    assert torch.allclose(logits(read_model(path)), logits(model), rtol=1e-5, atol=1e-5)


def factors_of(rope: dict[str, Any], head: int) -> np.ndarray:
    """Compute the tensor that the converter writes for a Llama 3 config: how much slower each pair turns."""
    pairs = np.arange(0, head, 2)
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (pairs / head)
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    between = (rope["original_max_position_embeddings"] / wavelengths - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
    )
    middle = 1 / ((1 - between) / rope["factor"] + between)
    return np.where(wavelengths < high, 1, np.where(wavelengths > low, rope["factor"], middle)).astype(np.float32)


def test_llama_3_scales_by_a_tensor_of_factors(tmp_path: Path) -> None:
    model = loud_model(tiny_config("llama", rope_parameters=LLAMA_3))
    write_gguf(tmp_path / "x.gguf", model, tensors={"rope_freqs.weight": factors_of(LLAMA_3, 16)})
    check_equal(tmp_path / "x.gguf", model)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaled_positions(kind: str, family: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 500.0, "factor": 4.0}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = 32
    model = loud_model(tiny_config(family, rope_parameters=rope))
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    write_gguf(tmp_path / "x.gguf", model, keys=keys)
    check_equal(tmp_path / "x.gguf", model)


def test_gemma_3_scales_the_layers_of_full_attention_only(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    types = ["sliding_attention", "full_attention", "sliding_attention"]
    scale = {"query_pre_attn_scalar": 16, "head_dim": 16, "sliding_window": 8, "layer_types": types}
    model = loud_model(tiny_config("gemma3", rope_parameters=rope, **scale))
    keys = {
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window": 8,
        "attention.sliding_window_pattern": [True, False, True],
    }  # fmt: skip
    write_gguf(tmp_path / "x.gguf", model, keys=keys)
    check_equal(tmp_path / "x.gguf", model)


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_27b_gemmas_have_their_own_attention_scale(family: str, layers: int, tmp_path: Path) -> None:
    """llama.cpp knows them by their number of layers alone."""
    small = {"num_hidden_layers": layers, "hidden_size": 32, "intermediate_size": 32}
    config = tiny_config(family, head_dim=16, sliding_window=8, query_pre_attn_scalar=8, **small)
    model = loud_model(config)
    write_gguf(tmp_path / "x.gguf", model, keys={"attention.sliding_window": 8})
    assert read_model(tmp_path / "x.gguf").model.layers[0].self_attn.scaling == 8**-0.5
    check_equal(tmp_path / "x.gguf", model)


@pytest.mark.parametrize("window", [0, 8])
def test_phi_3_has_short_and_long_factors(window: int, tmp_path: Path) -> None:
    short, long = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
    rope = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": short, "long_factor": long}
    config = tiny_config(
        "phi3", rope_parameters=rope | {"original_max_position_embeddings": 32, "attention_factor": 1.3},
        original_max_position_embeddings=32, sliding_window=window or None,
    )  # fmt: skip
    model = loud_model(config)
    keys = {
        "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.3,
        "attention.sliding_window": window,
    }  # fmt: skip
    tensors = {
        f"rope_factors_{name}.weight": np.array(each, np.float32) for name, each in (("short", short), ("long", long))
    }
    write_gguf(tmp_path / "x.gguf", model, keys=keys, tensors=tensors)
    read = read_model(tmp_path / "x.gguf")
    for n_tokens in (20, 48):  # below and above the length up to which the short factors hold
        assert torch.allclose(logits(read, n_tokens), logits(model, n_tokens), rtol=1e-5, atol=1e-5)


# What each family's converter writes beside the common keys, and how its tiny config differs from the suite's.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"head_dim": 16}, {}),
    "mistral": ({"sliding_window": None}, {}),
    "mixtral": ({"num_experts_per_tok": 2}, {"expert_count": 4, "expert_used_count": 2}),
    "qwen2": ({"use_sliding_window": False}, {}),
    "qwen3": ({"use_sliding_window": False}, {}),
    "qwen2_moe": (
        {}, {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24,
             "expert_shared_feed_forward_length": 24},
    ),
    "qwen3_moe": (
        {"norm_topk_prob": True}, {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24},
    ),
    "gemma": ({}, {}),
    "gemma2": (
        {}, {"attention.sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": ({"layer_types": ["sliding_attention"] * 3}, {"attention.sliding_window": 4}),
    "phi": ({}, {}),
    "phi3": ({}, {"attention.sliding_window": 4}),
    "starcoder2": ({"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, {}),
    "stablelm": ({}, {"use_parallel_residual": False}),
    "stablelm-parallel": ({"use_qkv_bias": True}, {"use_parallel_residual": True}),
    "olmo2": ({}, {}),
    "olmoe": ({"norm_topk_prob": False}, {"expert_count": 4, "expert_used_count": 2}),
    "gpt_oss": (
        {}, {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 48,
             "attention.sliding_window": 4, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
             "rope.scaling.original_context_length": 4096},
    ),
    "falcon": ({}, {}),
    "falcon-new": ({"ffn_hidden_size": 48}, {"tensor_data_layout": "jploski"}),
    "glm4": ({"attention_bias": True}, {}),
    "cohere": ({"logit_scale": 0.3}, {"logit_scale": 0.3}),
    "cohere2": (
        {}, {"logit_scale": 0.0625, "attention.sliding_window": 4,
             "attention.sliding_window_pattern": [True, False, True]},
    ),
    "granite": (
        {}, {"attention.scale": 0.1, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0},
    ),
    "smollm3": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_a_familys_file_gives_its_logits(family: str, tmp_path: Path) -> None:
    changes, keys = CASES[family]
    model = families.tiny_model(family, **changes)
    if model.config.model_type == "mistral":  # llama.cpp's name for both is llama
        model.config.model_type = "llama"
    write_gguf(tmp_path / "x.gguf", model, keys=keys)
    check_equal(tmp_path / "x.gguf", model)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_old_files_have_a_tensor_an_expert(one_by_one: bool, tmp_path: Path) -> None:
    config = tiny_config("mixtral", num_experts_per_tok=1)
    config.num_local_experts = 2  # as many as the pieces of an expert
    model = loud_model(config)
    keys = {"expert_count": 2, "expert_used_count": 1}
    write_gguf(tmp_path / "x.gguf", model, keys=keys, expert_by_expert=one_by_one)
    check_equal(tmp_path / "x.gguf", model)


def test_gpt_oss_experts_stay_in_their_blocks(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_experts_per_tok": 2, "layer_types": None}
    model = families.tiny_model("gpt_oss", **sizes)
    for name, value in model.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):  # numbers that MXFP4 holds exactly
            value.copy_(torch.tensor([0.5, -1.5, 3.0, -6.0])[torch.randint(0, 4, value.shape)] / 16)
            value.transpose(1, 2)[..., ::32] = 6.0 / 16  # so that each block's scale is the same
    keys = {
        "expert_count": 4, "expert_used_count": 2, "attention.sliding_window": 4, "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
    }  # fmt: skip
    tokens = {"model": "gpt2", "pre": "gpt-4o", "tokens": [*"abcdefgh", "ab"], "merges": ["a b"]}
    write_gguf(tmp_path / "x.gguf", model, "MXFP4", keys | {f"tokenizer.ggml.{key}": v for key, v in tokens.items()})
    read = load_model(ModelSpec(str(tmp_path / "x.gguf"), device="cpu", dtype="float32", cache=False))
    assert read.describe()["quantisation"]["used"] == "GGUF MXFP4 and others"
    for visit in read.store.sweep([Visit(layer, frozenset({"attn", "ffn"})) for layer in range(3)]):
        for name, value in read.module.named_parameters():
            if f".layers.{visit.layer}.mlp.experts." in name:
                assert torch.equal(value, model.get_parameter(name)), name


def test_a_llama_with_biases(tmp_path: Path) -> None:
    model = loud_model(tiny_config("llama", attention_bias=True))
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias.zero_()
    write_gguf(tmp_path / "all.gguf", model)
    check_equal(tmp_path / "all.gguf", model)
    for layer in model.model.layers:
        layer.self_attn.o_proj.bias = None  # as in llama-like conversions of Qwen: no bias is a bias of zero
    write_gguf(tmp_path / "three.gguf", model)
    check_equal(tmp_path / "three.gguf", model)


ONES = np.ones(8, np.float32)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], str]] = {
    "a key": ({"attention.magic": 3}, {}, r"x\.gguf: llama\.attention\.magic = 3 is not known here"),
    "a scale": ({"attention.scale": 0.5}, {}, r"llama\.attention\.scale = 0\.5 is not known"),
    "a cap": ({"final_logit_softcapping": 30.0}, {}, r"llama\.final_logit_softcapping = 30\.0 is not known"),
    "a multiplier": ({"residual_scale": 0.5}, {}, r"llama\.residual_scale = 0\.5 is not known"),
    "a window": ({"attention.sliding_window": 8}, {}, r"llama\.attention\.sliding_window = 8 is not known"),
    "a sigmoid": ({"expert_gating_func": 2}, {}, r"llama\.expert_gating_func = 2 is not known"),
    "a kind of scaling": ({"rope.scaling.type": "dynamic"}, {}, r"llama\.rope\.scaling\.type = dynamic is not known"),
    "longrope alone": ({"rope.scaling.type": "longrope"}, {}, "needs the tensors rope_factors_short"),
    "part of a head": ({"rope.dimension_count": 8}, {}, r"llama\.rope\.dimension_count = 8 is not supported, only 16"),
    "other values": ({"attention.value_length": 8}, {}, r"llama\.attention\.value_length = 8 is not supported"),
    "widths by layer": ({"feed_forward_length": [96, 64, 96]}, {}, "differs between layers"),
    "no epsilon": ({"attention.layer_norm_rms_epsilon": None}, {}, "lacks the key llama.attention.layer_norm_rms_eps"),
    "a tensor": ({}, {"blk.1.attn_q_norm.weight": ONES}, r"no place for the tensor blk\.1\.attn_q_norm\.weight"),
    "one bias": ({}, {"blk.0.attn_q.bias": np.ones(64, np.float32)}, r"lacks the tensor for model\.layers\.0.*bias"),
    "a later bias": ({}, {"blk.1.attn_k.bias": ONES}, r"no place for the tensor blk\.1\.attn_k\.bias"),
    "a factor for NVFP4": ({}, {"blk.0.attn_q.scale": ONES}, r"no place for the tensor blk\.0\.attn_q\.scale"),
    "one kind of factors": ({}, {"rope_factors_long.weight": ONES}, r"lacks the tensor rope_factors_short"),
    "too few factors": ({}, {"rope_freqs.weight": ONES[:4]}, r"rope_freqs\.weight is F32 of shape \(4,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(case: str, tmp_path: Path) -> None:
    keys, tensors, message = REFUSED[case]
    write_gguf(tmp_path / "x.gguf", loud_model(tiny_config("llama")), keys=keys, tensors=tensors)
    with pytest.raises(LowmemLayersError, match=message) as caught:
        read_model(tmp_path / "x.gguf")
    assert caught.value.hint


def test_keys_that_change_nothing_are_taken(tmp_path: Path) -> None:
    model = loud_model(tiny_config("llama"))
    keys = {
        "vocab_size": 256, "rope.scaling.finetuned": False, "expert_count": 0, "expert_used_count": 0,
        "attention.causal": True, "rope.scaling.type": "none", "rope.scaling.factor": 4.0, "residual_scale": 1.0,
    }  # fmt: skip
    write_gguf(tmp_path / "x.gguf", model, keys=keys, tensors={"rope_freqs.weight": ONES})
    check_equal(tmp_path / "x.gguf", model)


def test_harmless_keys_exist_and_have_a_reason() -> None:
    known = {
        value.partition(".")[2]
        for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for name, value in vars(group).items() if isinstance(value, str) and not name.startswith("_")
    }  # fmt: skip
    assert HARMLESS.keys() | NEUTRAL.keys() <= known
    assert all(HARMLESS.values())
    assert set(FAMILIES) <= set(gguf.MODEL_ARCH_NAMES.values())
