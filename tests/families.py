"""Tiny random models of the supported families: same code paths as the real ones, milliseconds to build."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 97
LAYERS = 3

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SLIDING: dict[str, Any] = {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
_GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _BASE),
    "mistral": ("MistralConfig", {**_BASE, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", {**_BASE, **_SLIDING}),
    "qwen3": ("Qwen3Config", {**_BASE, **_SLIDING, "head_dim": 8}),
    "phi": ("PhiConfig", _BASE),
    "phi3": ("Phi3Config", {**_BASE, "sliding_window": 4}),
    "gemma": ("GemmaConfig", {**_BASE, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**_BASE, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_BASE,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "olmo2": ("Olmo2Config", _BASE),
    "glm4": ("Glm4Config", {**_BASE, "head_dim": 8}),
    "stablelm": ("StableLmConfig", _BASE),
    "stablelm-parallel": ("StableLmConfig", {**_BASE, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2Config", {**_BASE, "sliding_window": 4}),
    "smollm3": ("SmolLM3Config", _BASE),
    "cohere": ("CohereConfig", _BASE),
    "cohere2": (
        "Cohere2Config",
        {**_BASE, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "granite": (
        "GraniteConfig",
        {
            **_BASE,
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.1,
        },
    ),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt_neox": ("GPTNeoXConfig", _BASE),
    "gpt_neox-sequential": ("GPTNeoXConfig", {**_BASE, "use_parallel_residual": False}),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**_BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("FalconConfig", _BASE),
    "falcon-new": ("FalconConfig", {**_BASE, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("FalconConfig", {**_BASE, "alibi": True, "parallel_attn": False}),
    "bloom": ("BloomConfig", {**_BASE, "n_layer": LAYERS, "n_head": 4}),
    "mpt": (
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64},
    ),
    "mixtral": ("MixtralConfig", {**_BASE, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_BASE, **_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_BASE, **_MOE, "head_dim": 8}),
    "olmoe": ("OlmoeConfig", {**_BASE, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_BASE,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 24,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {**_BASE, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4},
    ),
}

_MAMBA: dict[str, Any] = {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}),
    "jamba": (
        "JambaConfig",
        {
            **_BASE,
            **_MAMBA,
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    "lfm2": ("Lfm2Config", {**_BASE, "layer_types": ["conv", "full_attention", "conv"]}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **_BASE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "residual_multiplier": 0.5,
            "layer_types": ["mamba", "attention", "mamba"],
        },
    ),
    "dbrx": (
        "DbrxConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "jetmoe": ("JetMoeConfig", {**_BASE, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
"""Families whose decoder layers have mixers, one sublayer, several modules a branch, answers in threes or wrappers."""


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """Build a random model of a family; weights are scaled up so that every sublayer changes the logits visibly."""
    config_class, options = (FAMILIES | HYBRIDS)[family]
    config = getattr(transformers, config_class)(**{**options, **overrides})
    torch.manual_seed(seed)
    if dtype == torch.float64:
        config._experts_implementation = "eager"  # the grouped product of experts knows no float64
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "embed" not in name:
            parameter.mul_(4.0)
        elif "norm" in name or "ln" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
