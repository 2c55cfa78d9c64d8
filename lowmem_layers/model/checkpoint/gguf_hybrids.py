"""Configs of models whose decoder layers are of more than one kind: Qwen3-Next, Qwen3.5 and Gemma 4.

Source: llama.cpp's `load_hparams` of these architectures, and their classes in its conversion script.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowmem_layers.model.checkpoint.gguf_family import Fields, sliding
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import GgufKeys
from lowmem_layers.model.checkpoint.gguf_rope import FREQUENCIES, factors

_UNROTATED = 1e29  # llama.cpp divides by 1e30 the positions of dimensions that are not to be rotated


def qwen_hybrid(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Tell linear attention from full, and take its sizes; take the experts where there are any."""
    n_layers, n_values = fields["num_hidden_layers"], keys.need("ssm.time_step_rank")
    fields |= {
        "linear_conv_kernel_dim": keys.need("ssm.conv_kernel"),
        "linear_key_head_dim": keys.need("ssm.state_size"),
        "linear_num_key_heads": keys.need("ssm.group_count"),
        "linear_num_value_heads": n_values,
        "linear_value_head_dim": keys.need("ssm.inner_size") // n_values,
    }
    interval, listed = keys.get("full_attention_interval", 4), keys.get("attention.recurrent_layers")
    linear = listed or [(layer + 1) % interval != 0 for layer in range(n_layers)]
    fields["layer_types"] = ["linear_attention" if each else "full_attention" for each in linear[:n_layers]]
    if sections := keys.get("rope.dimension_sections"):  # of time, height and width, which are all equal in text
        fields["rope_parameters"] |= {"mrope_section": list(sections[:3]), "mrope_interleaved": True}
    if keys.get("expert_count"):
        fields |= {
            "num_experts": keys.need("expert_count"),
            "num_experts_per_tok": keys.need("expert_used_count"),
            "moe_intermediate_size": keys.need("expert_feed_forward_length"),
            "shared_expert_intermediate_size": keys.need("expert_shared_feed_forward_length"),
        }
        if fields["intermediate_size"] is None:  # no layer is dense
            del fields["intermediate_size"]


def gemma4(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take what differs between layers of full and of sliding attention."""
    n_layers, tensors = fields["num_hidden_layers"], header.tensors
    n_shared = keys.get("attention.shared_kv_layers", 0)
    types = fields["layer_types"] = sliding(keys, n_layers, period=6)
    full = [layer for layer, each in enumerate(types) if each == "full_attention"]
    slides = [layer for layer in range(n_layers) if layer not in full]
    if len(types) != n_layers or n_layers - 1 not in full:
        raise keys.refused("attention.sliding_window_pattern", types, "does not end with full attention")
    # 1) heads: in layers of full attention, values may be the keys
    wide, narrow = keys.need("attention.key_length"), keys.need("attention.key_length_swa")
    keys.expect("attention.value_length", wide)
    keys.expect("attention.value_length_swa", narrow)
    counts = _by_layer(fields["num_key_value_heads"], n_layers)
    n_full, n_sliding = (_only(keys, "attention.head_count_kv", counts, which) for which in (full, slides or full))
    without = [layer for layer in full if f"blk.{layer}.attn_v.weight" not in tensors]
    if not without and n_full != n_sliding:
        raise keys.refused("attention.head_count_kv", counts, "differs though every layer has values of its own")
    fields |= {
        "head_dim": narrow, "global_head_dim": wide, "num_key_value_heads": n_sliding,
        "num_global_key_value_heads": n_full, "attention_k_eq_v": bool(without), "num_kv_shared_layers": n_shared,
        "sliding_window": keys.need("attention.sliding_window"),
        "final_logit_softcapping": keys.get("final_logit_softcapping") or None,
    }  # fmt: skip
    # 2) positions
    keys.expect("rope.dimension_count", wide)
    keys.expect("rope.dimension_count_swa", narrow)
    rotated = [each for each in factors(header, FREQUENCIES, wide) or [1.0] * (wide // 2) if each < _UNROTATED]
    if any(each != 1.0 for each in rotated):
        raise keys.refused("rope.dimension_count", wide, f"stands beside a {FREQUENCIES} that is not known here")
    fields["rope_parameters"] = {
        "full_attention": {
            "rope_type": "proportional", "rope_theta": float(keys.need("rope.freq_base")),
            "partial_rotary_factor": 2 * len(rotated) / wide,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": float(keys.need("rope.freq_base_swa"))},
    }  # fmt: skip
    # 3) feed-forward; in models whose layers share keys and values, which are refused later on, some are wider
    widths = _by_layer(fields["intermediate_size"], n_layers)
    fields["intermediate_size"] = _only(keys, "feed_forward_length", widths, range(1 if n_shared else n_layers))
    if keys.get("expert_count"):
        fields |= {
            "enable_moe_block": True, "num_experts": keys.need("expert_count"),
            "top_k_experts": keys.need("expert_used_count"),
            "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        }  # fmt: skip
    # 4) an embedding for each layer
    fields["hidden_size_per_layer_input"] = keys.get("embedding_length_per_layer_input", 0)
    if "per_layer_token_embd.weight" in tensors:
        fields["vocab_size_per_layer_input"] = tensors["per_layer_token_embd.weight"].shape[0]


def _by_layer(value: Any, n_layers: int) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value] * n_layers


def _only(keys: GgufKeys, key: str, values: list[Any], layers: Iterable[int]) -> Any:
    """Take the one value that these layers have.

    Raises:
        ModelError: they have several.
    """
    found = {values[layer] for layer in layers}
    if len(found) != 1:
        raise keys.refused(key, values, "differs between layers of the same kind")
    return found.pop()
