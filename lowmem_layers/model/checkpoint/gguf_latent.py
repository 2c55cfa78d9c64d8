"""Configs of models whose keys and values come from one compressed state a token: DeepSeek V2, V3 and their kind.

llama.cpp calls them all `deepseek2`. Newer files have the projection that makes keys and values in two, that of the
keys turned; in these `key_length` and `value_length` are those of the compressed state, and the heads' are called
`…_mla`. Source: llama.cpp's `load_hparams` and graph of this architecture, and its class in the conversion script.
"""

from __future__ import annotations

import math

from lowmem_layers.model.checkpoint.gguf_family import Fields
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import GgufKeys
from lowmem_layers.model.checkpoint.gguf_rope import rope_parameters

_SOFTMAX, _SIGMOID = 1, 2  # llama.cpp's numbers for what makes weights of a router's logits
_AS_CONVERTED = 0.1  # the converter multiplies YaRN's `mscale_all_dim` by it


def deepseek2(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Take the sizes of heads and of the compressed state, the experts and how they are chosen, and the positions."""
    # 1) heads
    heads, rotated = fields["num_attention_heads"], keys.need("rope.dimension_count")
    rank = keys.need("attention.kv_lora_rank")
    key, value = keys.get("attention.key_length"), keys.get("attention.value_length")
    is_apart = keys.get("attention.key_length_mla") is not None
    if is_apart:  # attention runs on the compressed state, as if all heads shared one key
        keys.expect("attention.key_length", rank + rotated)
        keys.expect("attention.value_length", rank)
        key, value = keys.need("attention.key_length_mla"), keys.need("attention.value_length_mla")
    shared = fields["num_key_value_heads"]
    if shared != (1 if is_apart else heads) or key is None or value is None:
        raise keys.refused("attention.head_count_kv", shared, f"does not go with {heads} heads of width {key}")
    fields |= {
        "num_key_value_heads": heads, "q_lora_rank": keys.get("attention.q_lora_rank") or None, "kv_lora_rank": rank,
        "qk_rope_head_dim": rotated, "qk_nope_head_dim": key - rotated, "v_head_dim": value,
    }  # fmt: skip
    # 2) experts
    fields["first_k_dense_replace"] = keys.need("leading_dense_block_count")
    fields |= {
        "n_routed_experts": keys.need("expert_count"),
        "num_experts_per_tok": keys.need("expert_used_count"),
        "n_shared_experts": keys.need("expert_shared_count"),
        "moe_intermediate_size": keys.need("expert_feed_forward_length"),
        "routed_scaling_factor": float(keys.get("expert_weights_scale") or 1.0),
    }
    _choice_of_experts(fields, keys, header)
    # 3) positions
    fields["rope_parameters"] = rope_parameters(header, keys, rotated, fields["max_position_embeddings"])
    if fields["rope_parameters"]["rope_type"] == "yarn":
        _scaled_attention(fields, keys)


def _choice_of_experts(fields: Fields, keys: GgufKeys, header: GgufHeader) -> None:
    """Tell V3, whose router takes sigmoids, from V2, whose router takes a softmax.

    Raises:
        ModelError: the choice is neither's.
    """
    gating = keys.get("expert_gating_func") or _SOFTMAX
    groups, used = keys.get("expert_group_count") or 1, keys.get("expert_group_used_count") or 1
    is_normed = bool(keys.get("expert_weights_norm", False))
    if gating == _SIGMOID:
        fields |= {
            "model_type": "deepseek_v3", "norm_topk_prob": is_normed, "n_group": groups, "topk_group": used,
            "rope_interleave": True,
        }  # fmt: skip
        return
    corrected = [name for name in header.tensors if name.endswith(".exp_probs_b.bias")]
    if gating != _SOFTMAX or corrected:
        why = f"does not go with {corrected[0]}" if corrected else "is not known here"
        raise keys.refused("expert_gating_func", gating, why)
    if is_normed:
        raise keys.refused("expert_weights_norm", is_normed, "is not supported where weights are a softmax")
    if groups > 1:  # V2's own code takes the groups of the largest expert, llama.cpp those of the two largest
        raise keys.refused("expert_group_count", groups, "has more than one meaning where weights are a softmax")
    fields |= {"topk_method": "greedy", "norm_topk_prob": False}


def _scaled_attention(fields: Fields, keys: GgufKeys) -> None:
    """Scale attention as YaRN does with `mscale` and `mscale_all_dim` alike, which leaves rotations as they are.

    Raises:
        ModelError: the file scales it in another way.
    """
    rope = fields["rope_parameters"]
    usual = 0.1 * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0
    if not math.isclose(rope["attention_factor"], usual, rel_tol=1e-6):
        raise keys.refused("rope.scaling.attn_factor", keys.get("rope.scaling.attn_factor"), "is not known here")
    multiplier = keys.get("rope.scaling.yarn_log_multiplier")
    if not multiplier:
        raise keys.refused("rope.scaling.yarn_log_multiplier", multiplier, "leaves open how attention is scaled")
    mscale = round(float(multiplier) / _AS_CONVERTED, 6)  # in the file as a float32
    rope |= {"attention_factor": 1.0, "mscale": mscale, "mscale_all_dim": mscale}
