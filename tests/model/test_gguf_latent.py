"""GGUF files of DeepSeek V2 and V3, as today's converter writes them and as that of 2024 did, against logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lowmem_layers.errors import LowmemLayersError
from lowmem_layers.model.formats import DENSE, FORMATS, TURNED, Packed, stack, unpacked
from tests.model.gguf_files import logits, read_model, write_gguf
from tests.model.test_gguf_models import stored

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "kv_lora_rank": 32,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 32, "v_head_dim": 24, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "mscale": 0.707, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lite": ("DeepseekV2Config", {"q_lora_rank": None, "rope_parameters": YARN}),
    "v2": ("DeepseekV2Config", {"q_lora_rank": 24, "routed_scaling_factor": 16.0, "rope_parameters": PLAIN}),
    "v3": (
        "DeepseekV3Config",
        {"q_lora_rank": 32, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "rope_parameters": YARN},
    ),
    "moonlight": (
        "DeepseekV3Config",
        {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446, "rope_parameters": PLAIN},
    ),
}  # fmt: skip


def loud_model(case: str) -> Any:
    name, options = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SIZES, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for key, value in model.state_dict().items():
        if value.dim() >= 2 and "embed" not in key:
            value.mul_(3.0)
        elif value.dim() == 1:
            value.add_(torch.randn_like(value) * 0.1)
    return model


def keys_of(config: Any, *, apart: bool) -> dict[str, Any]:
    """List the keys that the converter writes; before 2025, those of heads were the heads' own."""
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    heads = {"attention.key_length": key, "attention.value_length": config.v_head_dim}
    if apart:
        heads = {
            "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim, "attention.head_count_kv": 1,
            "attention.value_length": config.kv_lora_rank, "attention.key_length_mla": key,
            "attention.value_length_mla": config.v_head_dim,
        }  # fmt: skip
    is_v3, rope = config.model_type == "deepseek_v3", config.rope_parameters
    scaling = {}
    if rope["rope_type"] == "yarn":
        scaling = {
            "rope.scaling.type": "yarn", "rope.scaling.factor": rope["factor"],
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 0.1 * rope["mscale_all_dim"],
        }  # fmt: skip
    groups = {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group} if is_v3 else {}
    return heads | scaling | groups | {
        "rope.dimension_count": config.qk_rope_head_dim, "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.q_lora_rank": config.q_lora_rank, "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts, "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts, "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor, "expert_gating_func": 2 if is_v3 else 1,
        "expert_weights_norm": True if is_v3 and config.norm_topk_prob else None,
    }  # fmt: skip


def write(path: Path, model: Any, quant_type: str = "F32", *, apart: bool = True, **changes: Any) -> None:
    model.config.keys_apart = apart
    write_gguf(path, model, quant_type, keys=keys_of(model.config, apart=apart) | changes)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("apart", [True, False])
def test_a_file_gives_the_models_logits(case: str, apart: bool, tmp_path: Path) -> None:
    model = loud_model(case)
    write(tmp_path / "x.gguf", model, apart=apart)
    assert torch.allclose(logits(read_model(tmp_path / "x.gguf")), logits(model), rtol=1e-5, atol=1e-5)


def test_blocks_of_keys_and_values_stay_as_they_are(tmp_path: Path) -> None:
    model = loud_model("v3")
    write(tmp_path / "x.gguf", model, "Q8_0")
    read, name = read_model(tmp_path / "x.gguf").state_dict(), "model.layers.1.self_attn.kv_b_proj.weight"
    heads = model.state_dict()[name].view(4, -1, 32)  # (heads, key and value, rank)
    keys = stored(heads[:, :32].transpose(1, 2).contiguous(), "Q8_0").transpose(1, 2)
    expected = torch.cat([keys, stored(heads[:, 32:].contiguous(), "Q8_0")], dim=1)
    assert torch.equal(read[name], expected.reshape(-1, 32))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "groups": ("v2", {"expert_group_count": 4, "expert_group_used_count": 2}, "has more than one meaning"),
    "normed": ("v2", {"expert_weights_norm": True}, "not supported where weights are a softmax"),
    "gating": ("v3", {"expert_gating_func": 1}, r"expert_gating_func = 1 does not go with blk\.1\.exp_probs_b"),
    "yarn": ("v3", {"rope.scaling.yarn_log_multiplier": None}, "leaves open how attention is scaled"),
    "attention": ("lite", {"rope.scaling.attn_factor": 0.5}, r"rope\.scaling\.attn_factor = 0\.5 is not known"),
    "heads": ("v3", {"attention.head_count_kv": 4}, "does not go with 4 heads"),
    "temperature": ("v3", {"attention.temperature_scale": 0.1}, "temperature_scale = .* is not known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(case: str, tmp_path: Path) -> None:
    model, changes, message = REFUSED[case]
    write(tmp_path / "x.gguf", loud_model(model), **changes)
    with pytest.raises(LowmemLayersError, match=message) as caught:
        read_model(tmp_path / "x.gguf")
    assert caught.value.hint


def test_turned_pieces_are_unpacked_from_a_packed_file_too() -> None:
    """What was packed into a file is unpacked by the format's name there."""
    keys, values = torch.randn(3, 5), torch.randn(2, 3)
    joined = stack([[TURNED.pack(DENSE.pack(keys), 1), DENSE.pack(values)]], (7, 3))
    again = Packed(FORMATS[joined.format.name], joined.shape, joined.parts, joined.settings)
    assert torch.equal(unpacked(again, torch.float32), torch.cat([keys.T, values]))
