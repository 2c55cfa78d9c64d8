"""The architectures of llama.cpp that are read, and which of transformers' models each of them is.

A family says which keys an architecture has beyond the common ones, what llama.cpp's graph of it does without a key,
and how its tensors lie in the file. Source: `load_hparams` and the graphs of llama.cpp, and the family's class in its
conversion script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowmem_layers.model.checkpoint.gguf_family import LAYER, Family, Fields, sliding
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_hybrids import gemma4, qwen_hybrid
from lowmem_layers.model.checkpoint.gguf_keys import GgufKeys
from lowmem_layers.model.checkpoint.gguf_latent import deepseek2


def _biases(fields: Fields, header: GgufHeader) -> None:
    """Give the model the biases that the file has."""
    fields["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    fields["mlp_bias"] = "blk.0.ffn_down.bias" in header.tensors


def _llama(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Tell Llama and Mistral from Mixtral, whose graph normalises the weights of the chosen experts."""
    _biases(fields, header)
    if keys.get("expert_count"):
        fields |= {"model_type": "mixtral", "num_local_experts": keys.need("expert_count"), "sliding_window": None}
        fields["num_experts_per_tok"] = keys.need("expert_used_count")


def _gemma2(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take attention's scale from the number of layers, as llama.cpp does: 27B has its own."""
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = fields["hidden_size"] // heads if layers == 46 else fields["head_dim"]
    fields["sliding_window"] = keys.get("attention.sliding_window", 4096)
    fields["attn_logit_softcapping"] = keys.get("attn_logit_softcapping", 50.0) or None
    fields["final_logit_softcapping"] = keys.get("final_logit_softcapping", 30.0) or None
    fields["layer_types"] = sliding(keys, layers, period=2)


def _gemma3(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Scale positions in the layers of full attention only."""
    layers, heads = fields["num_hidden_layers"], fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = fields["hidden_size"] // heads if layers == 62 else fields["head_dim"]
    fields["sliding_window"] = keys.need("attention.sliding_window")
    fields["final_logit_softcapping"] = keys.get("final_logit_softcapping") or None
    fields["layer_types"] = sliding(keys, layers, period=6)
    local = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base_swa", 10000.0))}
    fields["rope_parameters"] = {"full_attention": fields["rope_parameters"], "sliding_attention": local}


def _phi3(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    fields["sliding_window"] = keys.get("attention.sliding_window") or None
    fields["original_max_position_embeddings"] = keys.get(
        "rope.scaling.original_context_length", fields["max_position_embeddings"]
    )


def _stablelm(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Tell from the tensors, as llama.cpp does, whether attention and feed-forward run side by side."""
    fields["use_qkv_bias"] = "blk.0.attn_q.bias" in header.tensors
    fields["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in header.tensors
    keys.get("use_parallel_residual")


def _mixture(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    fields["num_experts"] = keys.need("expert_count")
    used = fields["num_experts_per_tok"] = keys.need("expert_used_count")
    # llama.cpp: where no width of an expert is given, the experts in use share that of a dense layer
    width = keys.get("expert_feed_forward_length", fields["intermediate_size"] // used)
    fields["moe_intermediate_size"] = width
    if fields["model_type"] == "qwen2_moe":
        shared = keys.get("expert_shared_feed_forward_length", fields["intermediate_size"])
        fields["shared_expert_intermediate_size"] = shared


def _olmoe(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take the width of an expert, which transformers calls that of a layer."""
    fields |= {"num_experts": keys.need("expert_count"), "num_experts_per_tok": keys.need("expert_used_count")}
    fields["intermediate_size"] = keys.get("expert_feed_forward_length", fields["intermediate_size"])


def _gpt_oss(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take the width of an expert; scale positions between limits that are not rounded, as the published config has."""
    fields |= {"num_local_experts": keys.need("expert_count"), "num_experts_per_tok": keys.need("expert_used_count")}
    fields["intermediate_size"] = keys.get("expert_feed_forward_length", fields["intermediate_size"])
    fields["sliding_window"] = keys.need("attention.sliding_window")
    fields["layer_types"] = sliding(keys, fields["num_hidden_layers"], period=2)
    if fields["rope_parameters"]["rope_type"] == "yarn":
        fields["rope_parameters"]["truncate"] = False


def _falcon(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Tell Falcon 7B, whose heads share one key, from the later ones by the number of keys."""
    heads, shared = fields["num_attention_heads"], fields.pop("num_key_value_heads")
    if shared == heads:
        raise keys.refused("attention.head_count_kv", shared, "is not supported for Falcon: every head has its own key")
    fields |= {
        "num_kv_heads": shared,
        "ffn_hidden_size": fields.pop("intermediate_size"),
        "alibi": False,
        "bias": False,
    }
    fields |= {"new_decoder_architecture": shared > 1, "multi_query": shared == 1, "parallel_attn": True}
    if shared > 1:
        fields["num_ln_in_parallel_attn"] = 2 if "blk.0.attn_norm_2.weight" in header.tensors else 1


def _glm4(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    fields["attention_bias"] = "blk.0.attn_q.bias" in header.tensors


def _cohere(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    if fields["model_type"] == "cohere":
        fields["use_qk_norm"] = "blk.0.attn_q_norm.weight" in header.tensors
    else:
        fields["sliding_window"] = keys.need("attention.sliding_window")
        fields["layer_types"] = sliding(keys, fields["num_hidden_layers"], period=4)


def _granite(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take the four multipliers; attention's is 1 / √(width of a head) where the file names none."""
    _biases(fields, header)
    head = fields["hidden_size"] // fields["num_attention_heads"]
    scales = {
        "attention_multiplier": keys.get("attention.scale") or head**-0.5,
        "embedding_multiplier": keys.get("embedding_scale") or 1.0,
        "residual_multiplier": keys.get("residual_scale") or 1.0,
        "logits_scaling": keys.get("logit_scale") or 1.0,
    }
    fields |= scales


def _gpt2(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Use GPT-2's own names; each of its heads has its own key."""
    heads, n_keys = fields.pop("num_attention_heads"), fields.pop("num_key_value_heads")
    if n_keys != heads:
        raise keys.refused("attention.head_count_kv", n_keys, f"is not supported, only {heads}")
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "max_position_embeddings": "n_positions"}
    fields |= {new: fields.pop(old) for old, new in names.items()}
    fields |= {"n_head": heads, "n_inner": fields.pop("intermediate_size")}


_QWEN_HYBRID: Mapping[str, Any] = {
    "has_head_dim": True, "rotates_part": True, "finish": qwen_hybrid, "offset_norms": True,
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", has_head_dim=True, finish=_llama, permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", has_head_dim=True),
    "gemma": Family("gemma", has_head_dim=True, offset_norms=True),
    "gemma2": Family("gemma2", has_head_dim=True, finish=_gemma2, offset_norms=True),
    "gemma3": Family("gemma3_text", has_head_dim=True, finish=_gemma3, offset_norms=True),
    "phi2": Family("phi", LAYER, "layer_norm_eps", rotates_part=True),
    "phi3": Family("phi3", rotates_part=True, finish=_phi3),
    "starcoder2": Family("starcoder2", LAYER, "norm_epsilon", fixed={"sliding_window": None}),
    "nemotron": Family("nemotron", LAYER, "norm_eps", rotates_part=True, offset_norms=True),
    "stablelm": Family("stablelm", LAYER, "layer_norm_eps", rotates_part=True, finish=_stablelm),
    "qwen2moe": Family("qwen2_moe", fixed={"norm_topk_prob": False}, finish=_mixture),
    "qwen3moe": Family("qwen3_moe", has_head_dim=True, fixed={"norm_topk_prob": True}, finish=_mixture),
    "olmo2": Family("olmo2"),
    "olmoe": Family("olmoe", fixed={"norm_topk_prob": False}, finish=_olmoe),
    "gpt-oss": Family("gpt_oss", has_head_dim=True, finish=_gpt_oss, turned=True),
    "falcon": Family("falcon", LAYER, "layer_norm_epsilon", finish=_falcon),
    "glm4": Family("glm4", has_head_dim=True, rotates_part=True, finish=_glm4),
    "command-r": Family("cohere", LAYER, "layer_norm_eps", {"logit_scale": "logit_scale"}, finish=_cohere),
    "cohere2": Family("cohere2", LAYER, "layer_norm_eps", {"logit_scale": "logit_scale"}, finish=_cohere),
    "granite": Family("granite", finish=_granite, permuted=True),
    "smollm3": Family("smollm3", permuted=True),
    "gpt2": Family("gpt2", LAYER, "layer_norm_epsilon", rotates=False, finish=_gpt2, turned=True),
    "qwen3next": Family("qwen3_next", fixed={"norm_topk_prob": True}, **_QWEN_HYBRID),
    "qwen35": Family("qwen3_5_text", **_QWEN_HYBRID, drafts=True, tiled=True),
    "qwen35moe": Family("qwen3_5_moe_text", **_QWEN_HYBRID, drafts=True, tiled=True),
    "gemma4": Family("gemma4_text", by_layer=True, finish=gemma4),
    "deepseek2": Family("deepseek_v2", by_layer=True, finish=deepseek2),
}
