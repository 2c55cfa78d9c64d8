"""The config of the Nemotron-NAS form (`DeciLMForCausalLM`): one entry of `block_configs` for each decoder layer.

Attention and feed-forward of a layer each are `no_op`, or have a width of their own: `n_heads_in_group` queries share a
key, and the feed-forward's width is `ffn_mult` · 2/3 · hidden size, rounded up to a multiple of 256. Source: the
published Llama-3.1-Nemotron-51B's config.json; read by vLLM's `nemotron_nas.py` and llama.cpp's `DeciModel`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lowmem_layers.errors import ModelError
from lowmem_layers.game.players.player import Role

PARTS: dict[str, tuple[str, ...]] = {
    "attn": (".self_attn.", ".input_layernorm."),
    "ffn": (".mlp.", ".post_attention_layernorm."),
}
"""A removed branch's tensors, the norm in front of it among them, by parts of their names."""

_MULTIPLE = 256
_REMOTE = "nvidia/Llama-3_3-Nemotron-Super-49B-v1"
_KEPT = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "initializer_range", "dtype", "architectures", "head_dim",
)  # fmt: skip


def config_of(module: Any, base: dict[str, Any], gone: Collection[tuple[int, Role]]) -> dict[str, Any]:
    """Write the config; `gone` are layers and places of what is removed.

    Raises:
        ModelError: the model is no plain Llama, or its feed-forward has a width that this form cannot say.
    """
    config = module.config
    hint = "use --form zeroed, or --form layers for whole decoder layers"
    if config.model_type != "llama":
        raise ModelError(f"the form nemotron takes models of the type llama, and this is {config.model_type}", hint)
    if config.attention_bias or config.mlp_bias:
        raise ModelError("the form nemotron has no biases, and this model has", hint)
    width = config.intermediate_size
    multiplier = _multiplier(width, config.hidden_size)
    if width_of(multiplier, config.hidden_size) != width:
        raise ModelError(f"the form nemotron has feed-forward widths in steps of {_MULTIPLE}, not {width}", hint)
    blocks = []
    for layer in range(config.num_hidden_layers):
        no_attn, no_ffn = (layer, "attn") in gone, (layer, "ffn") in gone
        shared = config.num_attention_heads // config.num_key_value_heads
        blocks.append(
            {
                "attention": {
                    "n_heads_in_group": None if no_attn else shared, "no_op": no_attn, "replace_with_linear": False,
                },
                "ffn": {"ffn_mult": None if no_ffn else multiplier, "no_op": no_ffn, "replace_with_linear": False},
            }
        )  # fmt: skip
    rope = dict(config.rope_parameters or {})
    theta = rope.pop("rope_theta", 10000.0)
    return {
        **{key: base[key] for key in _KEPT if key in base},
        "model_type": "nemotron-nas",
        "auto_map": {
            "AutoConfig": f"{_REMOTE}--configuration_decilm.DeciLMConfig",
            "AutoModelForCausalLM": f"{_REMOTE}--modeling_decilm.DeciLMForCausalLM",
        },
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": base["dtype"],
        "rope_theta": theta,
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "block_configs": blocks,
    }


def notes(gone: Collection[tuple[int, Role]], n_layers: int) -> tuple[str, ...]:
    """Say who reads this form, and where llama.cpp would compute something else."""
    lines = [
        "vLLM and llama.cpp's converter read this form; transformers asks for NVIDIA's own code (trust_remote_code)"
    ]
    alone = [layer for layer in range(n_layers) if (layer, "ffn") in gone and (layer, "attn") not in gone]
    if alone:
        listed = ", ".join(map(str, alone))
        lines.append(
            f"llama.cpp skips a whole layer that has no feed-forward, its attention too: layers {listed} would be "
            "computed wrongly there (vLLM computes them as they are)"
        )
    return tuple(lines)


def width_of(multiplier: float, hidden: int) -> int:
    """Give the feed-forward's width that readers of this form compute from a multiplier."""
    raw = int(2 * multiplier * hidden / 3)
    return -(-raw // _MULTIPLE) * _MULTIPLE


def _multiplier(width: int, hidden: int) -> float:
    exact = 3 * width / (2 * hidden)
    return exact if width_of(exact, hidden) == width else exact * (1 - 1e-9)
