"""From a GGUF file's metadata to a config of transformers, with no key left over that changes numbers.

Source: `load_hparams` and the graphs of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.gguf_families import FAMILIES
from lowmem_layers.model.checkpoint.gguf_family import Family, Fields
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import USE_SAFETENSORS, GgufKeys
from lowmem_layers.model.checkpoint.gguf_rope import rope_parameters


def family_of(header: GgufHeader) -> Family:
    """Look up a file's architecture.

    Raises:
        ModelError: how llama.cpp lays it out is not known here.
    """
    family = FAMILIES.get(header.architecture)
    if family is None:
        raise ModelError(
            f"{header.file.name} is a GGUF of architecture {header.architecture!r}, whose layout is not known here",
            f"use its safetensors; known are {', '.join(FAMILIES)}",
        )
    return family


def gguf_config(header: GgufHeader) -> Any:
    """Make the config of the model in a file.

    Raises:
        ModelError: an architecture, a key or a value that cannot be applied.
        CheckpointError: damaged rotary factors, or no embedding.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    family, keys = family_of(header), GgufKeys(header)
    fields = _common_fields(header, family, keys)
    if family.finish is not None:
        family.finish(fields, keys, header)
    keys.check_all_read()
    try:
        return CONFIG_MAPPING[fields.pop("model_type")](**fields)
    except (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise ModelError(f"{header.file.name}: no config can be made of its keys: {error}", USE_SAFETENSORS) from error


def _common_fields(header: GgufHeader, family: Family, keys: GgufKeys) -> Fields:
    """Read what every family has."""
    # 1) sizes
    hidden, heads = keys.need("embedding_length"), keys.same("attention.head_count")
    context = keys.need("context_length")
    if "token_embd.weight" not in header.tensors or not heads:
        raise ModelError(f"{header.file.name} holds no token embedding, or names no heads", USE_SAFETENSORS)
    read = keys.get if family.by_layer else keys.same
    n_drafts = keys.get("nextn_predict_layers", 0) if family.drafts else 0
    fields: Fields = {
        "model_type": family.model_type,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": keys.need("block_count") - n_drafts,
        "intermediate_size": read("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": read("attention.head_count_kv", heads),
        "max_position_embeddings": context,
        family.epsilon_field: float(keys.need(family.epsilon)),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **family.fixed,
    }
    for key, name in family.keys.items():
        fields[name] = keys.need(key)
    for name in ("bos", "eos"):
        fields[f"{name}_token_id"] = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
    fields["pad_token_id"] = header.metadata.get("tokenizer.ggml.padding_token_id")
    if family.by_layer:
        return fields
    # 2) heads, and what of them is rotated
    head = keys.get("attention.key_length", hidden // heads)
    keys.expect("attention.value_length", head)
    if family.has_head_dim:
        fields["head_dim"] = head
    elif head * heads != hidden:
        raise keys.refused("attention.key_length", head, f"is not supported, only {hidden // heads}")
    if not family.rotates:
        return fields
    rotated = keys.get("rope.dimension_count", head)
    fields["rope_parameters"] = rope_parameters(header, keys, rotated, context)
    if family.rotates_part:
        fields["rope_parameters"]["partial_rotary_factor"] = rotated / head
    elif rotated != head:
        raise keys.refused("rope.dimension_count", rotated, f"is not supported, only {head}")
    return fields
