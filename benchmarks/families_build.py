"""Tiny random models of every decoder-only type that transformers knows, shrunk from its config class's defaults.

No type has a recipe of its own as long as the common rules make a model of it: widths, counts of heads, layers,
experts and tokens are recognised by their names, and windows, chunks and top-k are made shorter than the test texts.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto import modeling_auto as auto

from lowmem_layers.model.checkpoint.skeleton import build_skeleton, set_tensor

VOCABULARY = 128
LAYERS = 4
LONGEST = 256

# The first pattern that a field's name matches decides; only whole numbers are replaced.
_RULES: tuple[tuple[str, int], ...] = (
    (r"(org_|text_)?vocab_size(_per_layer_input)?|n_vocab|vocab_size_.*", VOCABULARY),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks|num_decoder_layers", LAYERS),
    (r"hidden_size|n_embd|d_model|embed_dim|embedding_dim|attention_hidden_size|lru_width|word_embed_proj_dim", 64),
    (r"hidden_size_per_layer_input|laurel_rank|altup_num_inputs_", 8),
    (r"num_attention_heads|n_heads?|num_heads|encoder_attention_heads|decoder_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|num_global_key_value_heads|swa_num_key_value_heads", 2),
    (r"(global_|swa_|attention_)?head_dim|d_kv|qk_nope_head_dim|v_head_dim|swa_v_head_dim|kv_channels", 16),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"qk_head_dim", 24),
    (r"kv_lora_rank|q_lora_rank|o_lora_rank", 16),
    (r"index_n_heads", 16),
    (r"index_head_dim", 16),
    (r"index_topk", 4),
    (r"mamba_d_state|state_size|ssm_state_size", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 32),
    (r"mamba_d_ssm", 128),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"linear_num_key_heads|linear_num_value_heads", 4),
    (r"linear_key_head_dim|linear_value_head_dim", 16),
    (r".*chunk_size.*", 4),
    (r".*sliding_window.*|window_size|local_window_size|.*sliding_window_size", 4),
    (r"n_group|topk_group|moe_topk_group|mamba_n_groups|n_groups", 1),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|moe_k|num_selected_experts", 2),
    (r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts|num_routed_experts)", 4),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (r".*(intermediate|inner|ffn|expert|mlp).*(size|dim|width).*|n_inner|decoder_ffn_dim|dim_ff", 96),
    (r"(max_|n_)position(_embedding)?s|n_ctx|max_seq_len|context_length|max_target_positions|max_position_embeddings",
     LONGEST),
    (r"num_kv_shared_layers", 0),
)  # fmt: skip

_NEEDED = re.compile(r"head_dim|num_key_value_heads|num_experts_per_tok|n_routed_experts|n_shared_experts")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_QWEN4 = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 4,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 128, "ple_embed_dim": 16,
}  # fmt: skip
_LFM = ["conv", "full_attention", "conv", "full_attention"]
_COMPASS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE),
}
_TOWER = AutoConfig.for_model(
    "siglip_vision_model", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    image_size=28, patch_size=14, model_args={"embed_dim": 64},
)  # fmt: skip
"""Another tower in place of one that is built by timm, a package that need not be installed: text meets neither."""


def _rotating(section: list[int], share: float = 1.0) -> dict[str, Any]:
    """Give a text config's rotary settings for time, height and width, whose halves of a head's width must add up."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, "partial_rotary_factor": share}
    return {"text_config": {"rope_parameters": rope}}


OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm_ocr", "glmga", "qwen2_vl", "qwen2_5_vl", "paddleocr_vl"), _rotating([2, 3, 3])
    ),
    "glm4v_moe": _rotating([1, 1, 2], 0.5),
    "lfm2": {"layer_types": _LFM},
    "lfm2_moe": {"layer_types": _LFM},
    "mamba2": {"head_dim": 32, "num_heads": 4},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "bailing_hybrid": {"num_expert_group": 1, "num_experts_per_token": 2, "topk_group": 1},
    "bert-generation": {"is_decoder": True},
    "blt": {"encoder_config": {"hidden_size_global": 64}, "decoder_config": {"hidden_size_global": 64}},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    # several blocks of layers, whose states the layers behind them read
    **{name: {"n_layers_per_attn_res_block": 2} for name in ("inkling2_text", "inkling2_loop_text")},
    "zaya": {"num_experts_per_tok": 1},
    "gemma4_assistant": {
        "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "cohere_compass_text": _COMPASS,
    "cohere_compass": {"text_config": _COMPASS},
    # towers whose widths must fit the text's, or one another's
    "apertus1p5": {
        "audio_config": {"codebook_dim": 64, "codebook_size": 32},
        "vision_config": {"codebook_size": 32},
        "image_token_id": 9,
        "audio_token_id": 10,
        "image_token_offset": 20,
        "audio_token_offset": 52,
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "granite_docling": {"vision_config": {"out_hidden_size": 64}},
    **{
        name: {"vision_config": {"text_hidden_size": 64}, "text_config": {"n_layers_per_attn_res_block": 2}}
        for name in ("inkling2", "inkling2_loop")
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {"audio_config": {"out_hidden_size": 64}},
    "nemo_speechlm": {
        "audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 64}}},
        "word_timestamp_config": {"blank_token_id": VOCABULARY - 1},
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "fast_vlm": {"vision_config": _TOWER},
    "perception_lm": {"vision_config": _TOWER},
    # parts of the text's config that have no usable default
    "mllama": {"text_config": {"cross_attention_layers": [1, 3]}},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 2}},  # as all that are published
    "idefics": {"cross_layer_interval": 2},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "n_group": 1, "topk_group": 1}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "ernie4_5_vl_moe": _rotating([2, 2, 4]),
    "glm5_next": {"text_config": {"index_kpool": 2}},
    "granite4_vision": {"deepstack_layer_map": [[1, 0], [0, 2]], "downsample_rate": "1/4"},
    "hunyuan_vl": _rotating([2, 2, 2, 2]),
    "hy_v4_vl": _rotating([1, 1, 2]),
    "kyutai_speech_to_text": {"audio_pad_token_id": 69, "codec_config": {"upsample_groups": 64}},
    # `vision_start_token_id`: published configs have it, the classes have no default
    "qwen2_5_omni_thinker": {**_rotating([2, 3, 3]), "vision_start_token_id": 5},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
    "qwen2_5_omni": {"thinker_config": {**_rotating([2, 3, 3]), "vision_start_token_id": 5}},
    "qwen3_omni_moe": {"thinker_config": {"vision_start_token_id": 5}},
    "step3p7": {"text_config": {"sliding_window": 4}},
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96},
    },
}
"""What single types need beside the rules: sizes that hang together in a way of their own."""


def causal_types() -> list[str]:
    """List the decoder-only types of transformers' causal-LM mapping: no encoder-decoder, no masked language model."""
    found = []
    for name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # noqa: BLE001 (a type whose defaults make no config is counted, and reported as not built)
            found.append(name)
            continue
        if not config.is_encoder_decoder and name not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            found.append(name)
    return found


def multimodal_types() -> list[str]:
    """List the multimodal types that have a decoder for text of their own, and are no encoder-decoders."""
    found = []
    for name in auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception:  # noqa: BLE001 (counted, and reported as not built)
            found.append(name)
            continue
        if not config.is_encoder_decoder:
            found.append(name)
    return found


def tiny_config(model_type: str) -> Any:
    """Shrink a type's default config."""
    config_class = CONFIG_MAPPING[model_type]
    return _shrunk(config_class, OVERRIDES.get(model_type, {}))


def _shrunk(config_class: Any, given: dict[str, Any]) -> Any:
    try:
        fields = {k: v for k, v in config_class().to_dict().items() if k != "model_type"}
    except Exception:  # noqa: BLE001 (a default that contradicts itself)
        fields = {k: p.default for k, p in inspect.signature(config_class.__init__).parameters.items()}
    changed: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    subs = dict(getattr(config_class, "sub_configs", None) or {})
    for name, value in fields.items():
        own = given.get(name)
        if isinstance(value, dict) and "mrope_section" in value:  # halves of the heads' widths for time, height, width
            changed[name] = {**value, "mrope_section": [2, 3, 3]}
        if name in subs:
            kind = (value if isinstance(value, dict) else own if isinstance(own, dict) else {}).get("model_type")
            inner = CONFIG_MAPPING[kind] if kind and kind in CONFIG_MAPPING else subs[name]
            if hasattr(own, "to_dict"):
                changed[name] = own
            elif hasattr(inner, "to_dict"):
                changed[name] = _shrunk(inner, own or {})
            continue
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            size = next((size for pattern, size in _RULES if re.fullmatch(pattern, name)), None)
            if size is not None and not (size > value >= 0 and value != 0 and "window" in name):
                changed[name] = size if value else value
        elif value is None and _NEEDED.fullmatch(name):
            changed[name] = next(size for pattern, size in _RULES if re.fullmatch(pattern, name))
        elif isinstance(value, list) and value and re.search(r"layer|block|pattern|types|hybrid|kinds", name):
            changed[name] = _sample(value)
    if "kv_lora_rank" in fields:  # latent attention: every head has its own keys, and rotates a part of them
        changed |= {"num_key_value_heads": 4, "head_dim": 8}
    whole = {name: value for name, value in given.items() if name not in subs and name != "model_type"}
    return config_class(**{**changed, **whole})


def _sample(values: list[Any]) -> list[Any]:
    """Cover every kind of entry with LAYERS of them, in the order of first appearance."""
    kinds = list(dict.fromkeys(v if isinstance(v, str | int | bool) else repr(v) for v in values))
    if not all(isinstance(v, str) for v in values):
        return values[:LAYERS]
    return [kinds[i % len(kinds)] for i in range(LAYERS)]


def tiny_model(model_type: str) -> Any:
    """Build a type's causal language model, its weights scaled so that every sublayer changes the logits visibly."""
    model = build_skeleton(tiny_config(model_type), torch.float32)
    for name, parameter in list(model.named_parameters()):
        set_tensor(model, name, torch.empty(parameter.shape, dtype=parameter.dtype).normal_(0, 0.02))
    for module in model.modules():  # norms start at what their class starts with, before noise is added
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 1 and "Norm" in type(module).__name__ and name == "weight":
                parameter.fill_(1.0)
    model.tie_weights()
    rescale(model)
    return model


def rescale(model: Any) -> None:
    """Give every matrix the scale of its width, and norms and biases some noise."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name or "wte" in name:
            parameter.copy_(noise * 0.5)
        elif parameter.dim() >= 2 and "conv" not in name:
            parameter.copy_(noise * 1.2 / max(parameter.shape[-1], parameter.shape[-2]) ** 0.5)
        elif "norm" in name or "ln" in name:
            parameter.add_(noise * 0.1)
        else:
            parameter.add_(noise * 0.05)
