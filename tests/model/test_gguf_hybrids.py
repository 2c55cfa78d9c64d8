"""GGUF files of GPT-2 and of models whose layers are of more than one kind, against transformers' own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lowmem_layers.errors import LowmemLayersError
from tests.model.gguf_files import is_blocks, logits, read_model, write_gguf
from tests.model.test_gguf_models import stored

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = {
    "head_dim": 16, "linear_conv_kernel_dim": 3, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 6,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
}  # fmt: skip
SLIDING = {
    "num_hidden_layers": 6, "head_dim": 8, "global_head_dim": 16, "sliding_window": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
SMALL = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 64}),
    "qwen3_next": ("Qwen3NextConfig", {**SIZES, **LINEAR, **EXPERTS}),
    "qwen3_5": ("Qwen3_5TextConfig", {**SIZES, **LINEAR, "tie_word_embeddings": True}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", {**SIZES, **LINEAR, **EXPERTS}),
    "gemma4": ("Gemma4TextConfig", {**SIZES, **SLIDING, **SMALL}),  # with an embedding for each layer
    "gemma4-large": (  # as 31B: values are the keys where attention is full
        "Gemma4TextConfig",
        {**SIZES, **SLIDING, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
         "num_global_key_value_heads": 1, "final_logit_softcapping": 30.0},
    ),
    "gemma4-moe": (
        "Gemma4TextConfig",
        {**SIZES, **SLIDING, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4,
         "top_k_experts": 2, "moe_intermediate_size": 32},
    ),
}  # fmt: skip


def loud_model(case: str) -> Any:
    """Build a model whose every weight, scale and bias changes the logits visibly."""
    name, options = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if value.dim() >= 2 and "embed" not in name and "conv1d" not in name:
            value.mul_(3.0)
        elif value.dim() == 1:
            value.add_(torch.randn_like(value) * 0.1)
    return model


def keys_of(config: Any) -> dict[str, Any]:
    """List the keys that the converter writes for these architectures beside the common ones."""
    keys: dict[str, Any] = {}
    if hasattr(config, "linear_num_key_heads"):
        keys |= {
            "ssm.conv_kernel": config.linear_conv_kernel_dim, "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": config.linear_num_key_heads, "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
            "full_attention_interval": 4, "rope.dimension_count": 4,
        }  # fmt: skip
        if config.model_type != "qwen3_next":
            keys["rope.dimension_sections"] = [1, 1, 0, 0]
    if getattr(config, "num_experts", None):
        used = config.top_k_experts if config.model_type == "gemma4_text" else config.num_experts_per_tok
        keys |= {"expert_count": config.num_experts, "expert_used_count": used}
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
        if config.model_type != "gemma4_text":
            keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return keys | (gemma4_keys(config) if config.model_type == "gemma4_text" else {})


def gemma4_keys(config: Any) -> dict[str, Any]:
    n_layers, n_shared = config.num_hidden_layers, config.num_kv_shared_layers
    slides = [each == "sliding_attention" for each in config.layer_types]
    narrow, wide = (config.per_layer_config[each] for each in ("sliding_attention", "full_attention"))
    keys: dict[str, Any] = {
        "attention.key_length": wide.head_dim, "attention.value_length": wide.head_dim,
        "attention.key_length_swa": narrow.head_dim, "attention.value_length_swa": narrow.head_dim,
        "attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": n_shared, "rope.dimension_count": wide.head_dim,
        "rope.dimension_count_swa": narrow.head_dim, "rope.freq_base_swa": 10000.0,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
    }  # fmt: skip
    if config.use_double_wide_mlp:
        widths = [config.intermediate_size * (1 if layer < n_layers - n_shared else 2) for layer in range(n_layers)]
        keys["feed_forward_length"] = widths
    if config.attention_k_eq_v:
        keys["attention.head_count_kv"] = [2 if each else wide.num_key_value_heads for each in slides]
    if config.final_logit_softcapping:
        keys["final_logit_softcapping"] = config.final_logit_softcapping
    return keys


def extra_tensors(config: Any) -> dict[str, np.ndarray]:
    """Gemma 4 rotates a quarter of a head: the positions of the rest are divided by 1e30."""
    if config.model_type != "gemma4_text":
        return {}
    pairs = config.per_layer_config["full_attention"].head_dim // 2
    return {"rope_freqs.weight": np.array([1.0] * (pairs // 4) + [1e30] * (pairs - pairs // 4), np.float32)}


def write(path: Path, model: Any, quant_type: str = "F32", **more: Any) -> None:
    keys = keys_of(model.config) | more.pop("keys", {})
    tensors = extra_tensors(model.config) | more.pop("tensors", {})
    write_gguf(path, model, quant_type, keys=keys, tensors=tensors, **more)


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_models_logits(case: str, tmp_path: Path) -> None:
    model = loud_model(case)
    write(tmp_path / "x.gguf", model)
    assert torch.allclose(logits(read_model(tmp_path / "x.gguf")), logits(model), rtol=1e-5, atol=1e-5)


def test_gpt_2s_blocks_stay_as_they_are(tmp_path: Path) -> None:
    model = loud_model("gpt2")
    write(tmp_path / "x.gguf", model, "Q8_0")
    read = read_model(tmp_path / "x.gguf").state_dict()
    for name, value in model.state_dict().items():
        kind = "Q8_0" if is_blocks(name, value) else "F32"
        expected = stored(value.T, kind).T if kind == "Q8_0" else value  # blocks run along a layer's inputs
        assert torch.equal(read[name], expected), name


@pytest.mark.parametrize("case", ["qwen3_5", pytest.param("qwen3_5_moe", marks=pytest.mark.slow)])
def test_blocks_of_qwen_are_read_as_transformers_reads_them(case: str, tmp_path: Path) -> None:
    """Its own loader undoes the same conversion in another way: on whole tensors, dequantised."""
    draft = {f"blk.4.{name}.weight": np.ones(64, np.float32) for name in ("attn_norm", "nextn.enorm")}
    keys = {"block_count": 5, "nextn_predict_layers": 1, "tokenizer.ggml.tokens": [str(i) for i in range(97)]}
    write(tmp_path / "x.gguf", loud_model(case), "Q8_0", keys=keys, tensors=draft)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    read = read_model(tmp_path / "x.gguf").state_dict()
    assert read.keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        assert torch.equal(read[name], value), name


LAST_SLIDES = [True] * 6
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, np.ndarray], str]] = {
    "heads": (
        "gpt2",
        {"attention.head_count_kv": 2},
        {},
        r"gpt2\.attention\.head_count_kv = 2 is not supported",
    ),
    "rotation": ("gpt2", {"rope.dimension_count": 16}, {}, r"gpt2\.rope\.dimension_count = 16 is not known here"),
    "a tensor": ("qwen3_5", {}, {"blk.4.attn_norm.weight": np.ones(64, np.float32)}, r"no place .* blk\.4\.attn_norm"),
    "a norm": ("qwen3_5", {"ssm.dt_b_c_rms": True}, {}, r"qwen35\.ssm\.dt_b_c_rms = True is not known here"),
    "the last slides": ("gemma4", {"attention.sliding_window_pattern": LAST_SLIDES}, {}, "does not end with full"),
    "widths": ("gemma4", {"feed_forward_length": [64] * 5 + [32]}, {}, "feed_forward_length = .* differs between"),
    "shared keys": ("gemma4", {"attention.shared_kv_layers": 3}, {}, "its last 3 decoder layers read the keys and"),
    "scaled": ("gemma4", {"rope.scaling.factor": 8.0}, {}, r"gemma4\.rope\.scaling\.factor = 8\.0 is not known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(case: str, tmp_path: Path) -> None:
    model, keys, tensors, message = REFUSED[case]
    write(tmp_path / "x.gguf", loud_model(model), keys=keys, tensors=tensors)
    with pytest.raises(LowmemLayersError, match=message) as caught:
        read_model(tmp_path / "x.gguf")
    assert caught.value.hint


def test_a_decay_that_has_no_logarithm_is_damage(tmp_path: Path) -> None:
    model = loud_model("qwen3_5")
    model.model.layers[0].linear_attn.A_log.fill_(-200.0)  # its exponential is 0
    write(tmp_path / "x.gguf", model)
    with pytest.raises(LowmemLayersError, match=r"linear_attn\.A_log is the logarithm of no positive number"):
        read_model(tmp_path / "x.gguf")
