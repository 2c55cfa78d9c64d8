"""A model's config and tokenizer, and the models we must refuse on sight of them."""

from __future__ import annotations

import json
from typing import Any

from lowmem_layers.errors import ModelError
from lowmem_layers.model.source import Source
from lowmem_layers.model.spec import ModelSpec

_DECODERS = "lowmem-layers takes decoder-only language models: Llama, Mistral, Mixtral, Qwen, Gemma, GPT-2 and so on"


def read_config(source: Source, spec: ModelSpec) -> Any:
    """Read the config and refuse what is not a decoder-only language model.

    Raises:
        ModelError: the config is damaged, needs the model's own code, or is an encoder's.
    """
    from transformers import AutoConfig

    if source.gguf is None:
        _check_model_type(source, spec)
    try:
        config = AutoConfig.from_pretrained(
            source.folder, gguf_file=source.gguf, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source.name}: its config cannot be read: {_first_line(error)}", _DECODERS) from error
    _refuse_encoders(source.name, config)
    return config


def read_tokenizer(source: Source, spec: ModelSpec) -> Any:
    """Read the tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.folder, gguf_file=source.gguf, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{source.name} has no tokenizer that can be read: {_first_line(error)}",
            "the folder needs tokenizer.json, or the files its tokenizer class names",
        ) from error


def _check_model_type(source: Source, spec: ModelSpec) -> None:
    from transformers import CONFIG_MAPPING

    try:
        document = json.loads((source.folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{source.folder / 'config.json'} is not JSON", "download or save the model again") from error
    model_type = document.get("model_type")
    if model_type in CONFIG_MAPPING:
        return
    if document.get("auto_map"):
        if not spec.trust_remote_code:
            raise ModelError(
                f"{source.name} (model type {model_type!r}) comes with its own Python code, which is not run unasked",
                "if you trust its author, add --trust-remote-code",
            )
        return
    raise ModelError(f"{source.name} has the model type {model_type!r}, which transformers does not know", _DECODERS)


def _refuse_encoders(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type})", _DECODERS)
    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_masked and not getattr(config, "is_decoder", False):
        raise ModelError(f"{name} is an encoder model ({config.model_type})", _DECODERS)
    has_own_code = bool(getattr(config, "auto_map", None))
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not has_own_code:
        raise ModelError(f"{name} is no causal language model ({config.model_type})", _DECODERS)


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0]
