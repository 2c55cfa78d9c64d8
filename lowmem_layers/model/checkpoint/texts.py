"""A model's config and tokenizer, and the refusal of models that are not decoder-only language models.

The tokenizer of a GGUF file is converted by transformers, which takes seconds, so the result is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowmem_layers.errors import LowmemLayersError, ModelError
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_tokens import read_gguf_tokenizer
from lowmem_layers.model.checkpoint.source import Source
from lowmem_layers.model.homes.cache import ABOUT, TEXTS, cache_folder, fingerprint_files
from lowmem_layers.model.memory import is_shortage
from lowmem_layers.model.spec import ModelSpec

_DECODERS = "lowmem-layers takes decoder-only language models: Llama, Mistral, Mixtral, Qwen, Gemma, GPT-2 and so on"
_TOKENIZER = "the folder needs tokenizer.json, or the files its tokenizer class names"
AGAIN = "download or save the model again"
_COUNT, _MOST = re.compile(r"(num|n)_(\w+_)?(layers?|experts?|blocks?)"), 10_000
_CONVERSION = 2  # counts the ways in which GGUF tokenizers were made, so that none that an older way made is taken


def read_config(source: Source, spec: ModelSpec) -> Any:
    """Read a folder's config and refuse what is not a decoder-only language model. (For a GGUF file: `gguf_config`.)

    Raises:
        ModelError: the config is damaged, needs the model's own code, or is an encoder's.
    """
    from transformers import AutoConfig

    _check_config_file(source, trust_remote_code=spec.trust_remote_code)
    with unreadable(f"{source.name}: its config cannot be read", _DECODERS):
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=spec.trust_remote_code)
    _refuse_encoders(source.name, config)
    return config


def read_tokenizer(source: Source, spec: ModelSpec) -> Any:
    """Read the tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if source.gguf is not None and spec.cache and _is_sound(kept := _texts_folder(source)):
        return AutoTokenizer.from_pretrained(kept)
    with unreadable(f"{source.name} has no tokenizer that can be read", _TOKENIZER):
        if source.gguf is not None:
            tokenizer = read_gguf_tokenizer(read_gguf_header(source.folder / source.gguf))
        else:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=spec.trust_remote_code)
        tokenizer(["some words"], add_special_tokens=False)  # settings of a wrong type show when it is used
    return tokenizer


@contextmanager
def unreadable(what: str, hint: str) -> Iterator[None]:
    """Turn whatever is raised about files that are not as they should be into one error that says what it was.

    Libraries check little of what they read: a number where a list should be ends anywhere in them, with anything. An
    error that says nothing of files (a missing attribute, a wrong type) may be a fault of this package, too: the hint
    says so. What says more is passed on: our own errors, a permission that is missing, memory that ran out.

    Raises:
        ModelError: something else was raised.
    """
    try:
        yield
    except (LowmemLayersError, PermissionError):
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        if isinstance(error, (OSError, ValueError)):
            raise ModelError(f"{what}: {_first_line(error)}", hint) from error
        both = f"{hint}; if other programs read this model, the fault is lowmem-layers' own: --debug shows where it is"
        raise ModelError(f"{what}: {type(error).__name__}: {_first_line(error)}", both) from error


def keep_texts(source: Source, config: Any, tokenizer: Any, announce: Callable[[str], None]) -> None:
    """Keep the converted config and tokenizer of a GGUF file for the next start.

    Where the cache cannot be written to, nothing is kept, and `announce` says so: the next start only takes longer.
    """
    if source.gguf is None or _is_sound(folder := _texts_folder(source)):
        return
    if folder.is_dir():
        announce(f"{folder} is not as it was written; config and tokenizer are made again")
        shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / ABOUT).write_text(json.dumps({"model": source.name, "sha256": _hashes(partial)}))
        partial.replace(folder)  # whole, or not there
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # else another process was faster
            announce(f"config and tokenizer of {source.name} are not kept in {folder.parent}: {error.strerror}")


def _is_sound(folder: Path) -> bool:
    """Tell whether a folder of kept texts is there, with the files that were written and what was written to them."""
    try:
        return json.loads((folder / ABOUT).read_text())["sha256"] == _hashes(folder)
    except (OSError, ValueError, KeyError, TypeError):  # not there, damaged, or of a version that kept no checksums
        return False


def _hashes(folder: Path) -> dict[str, str]:
    """Hash the files of a folder of texts but for the one that holds the hashes."""
    files = sorted(path for path in folder.iterdir() if path.name != ABOUT)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _texts_folder(source: Source) -> Path:
    """Name the folder for what we and this version of transformers make of a GGUF file's config and tokenizer."""
    from transformers import __version__ as transformers_version

    fingerprint = fingerprint_files(source.weight_files)
    return cache_folder() / TEXTS / f"{fingerprint[:32]}-{transformers_version}-{_CONVERSION}"


def _check_config_file(source: Source, *, trust_remote_code: bool) -> None:
    """Refuse a config.json that is damaged, or of a model type that transformers does not know.

    Looked at before transformers reads it, whose messages would ask to run the model's code.
    """
    from transformers import CONFIG_MAPPING

    path = source.folder / "config.json"
    try:
        document = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON", AGAIN) from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is no model's config", AGAIN)
    if not isinstance(document.get("quantization_config") or {}, dict):
        raise ModelError(f"{path}: quantization_config is no table", AGAIN)
    _check_counts(path, document)
    model_type = document.get("model_type")
    if (isinstance(model_type, str) and model_type in CONFIG_MAPPING) or (
        document.get("auto_map") and trust_remote_code
    ):
        return
    if document.get("auto_map"):
        raise ModelError(
            f"{source.name} (model type {model_type!r}) comes with its own Python code, which is not run unasked",
            "if you trust its author, add --trust-remote-code",
        )
    raise ModelError(f"{source.name} has the model type {model_type!r}, which transformers does not know", _DECODERS)


def _check_counts(path: Path, node: Any) -> None:
    """Refuse counts of layers and experts that no model has: transformers would build modules without end."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, int | float) and value > _MOST and _COUNT.fullmatch(str(name)):
            raise ModelError(f"{path}: {name} is {value:.4g}; no model has more than {_MOST:,}", AGAIN)
        _check_counts(path, value)


def _refuse_encoders(name: str, config: Any) -> None:
    """Refuse what does not predict the next token from those before it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder model ({config.model_type})", _DECODERS)
    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if is_masked and not getattr(config, "is_decoder", False):
        raise ModelError(f"{name} is an encoder model ({config.model_type})", _DECODERS)
    has_own_code = bool(getattr(config, "auto_map", None))
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    if config.model_type not in known and not has_own_code:
        raise ModelError(f"{name} is no causal language model ({config.model_type})", _DECODERS)


def _first_line(error: Exception) -> str:
    """Take the first line that says something; some libraries put a heading before it."""
    lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines or [""])[0]
