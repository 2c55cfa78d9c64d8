"""The tokenizer of a GGUF file: transformers' own reading of the vocabulary, completed by what that leaves out.

transformers cuts words as GPT-2 does where it does not know a file's `pre`, and leaves three settings unread. Gemma 4's
text begins with no token of its own, as its published tokenizer has it, whatever the file says: chat templates write
it. Source: transformers' `integrations.gguf` and `llama_vocab::impl::load` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from gguf import Keys

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import USE_SAFETENSORS
from lowmem_layers.model.checkpoint.gguf_words import SPLITS, WHOLE_WORDS, splitter

_NAME = "tokenizer.ggml."
_KNOWN = frozenset(value for name, value in vars(Keys.Tokenizer).items() if not name.startswith("_")) | {
    "tokenizer.ggml.suppress_tokens"  # what generation leaves out: it is no part of a text's score
}
_OFF = ("add_sep_token", "remove_extra_whitespaces")  # not applied by transformers: refused where they are on


def check_tokenizer(header: GgufHeader) -> None:
    """Refuse a vocabulary that would be read otherwise than its model was trained with.

    Raises:
        ModelError: a kind of vocabulary, a pre-tokenizer or a key that is not known here.
    """
    file, about = header.file.name, header.metadata
    for key in about:
        if key.startswith("tokenizer.") and key not in _KNOWN and not key.startswith("tokenizer.chat_template"):
            raise ModelError(f"{file}: the key {key} is not known here and may change tokens", USE_SAFETENSORS)
    kind = about.get(f"{_NAME}model")
    if kind not in ("gpt2", "llama", "gemma4"):
        known = "only 'gpt2', 'llama' and 'gemma4' are read"
        raise ModelError(f"{file} has a vocabulary of kind {kind!r}, {known}", USE_SAFETENSORS)
    for key in _OFF:
        if about.get(_NAME + key):
            raise ModelError(f"{file}: {_NAME}{key} is on, which is not supported", USE_SAFETENSORS)
    pre = about.get(f"{_NAME}pre")
    if kind == "gpt2" and pre not in SPLITS:
        said = "names no pre-tokenizer" if pre is None else f"names the pre-tokenizer {pre!r}, which is not known here"
        raise ModelError(
            f"{file} {said}, so its text would be cut otherwise than in training",
            "take a newer GGUF of the model, or its safetensors; known are " + ", ".join(SPLITS),
        )


def read_gguf_tokenizer(header: GgufHeader) -> Any:
    """Read the tokenizer. See `transformers` for what it raises."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    check_tokenizer(header)
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(header.file.parent, gguf_file=header.file.name)
    inner, about = tokenizer.backend_tokenizer, header.metadata
    pre = str(about.get(f"{_NAME}pre"))
    if about[f"{_NAME}model"] == "gpt2":
        inner.pre_tokenizer = splitter(pre)
        if pre in WHOLE_WORDS:
            inner.model.ignore_merges = True
            if f"{_NAME}add_bos_token" not in about:
                tokenizer.add_bos_token = True
    elif about.get(f"{_NAME}add_space_prefix") is False and isinstance(inner.pre_tokenizer, pre_tokenizers.Metaspace):
        inner.pre_tokenizer.prepend_scheme = "never"
    return tokenizer
