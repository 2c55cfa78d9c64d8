"""The keys of a GGUF file under its architecture's name, and which of them may stay unread.

Every key that changes numbers is read by `gguf_config` or `gguf_rope`. Of the rest, some change nothing, and some
change nothing at the value that stands there; a file with any other key is refused by that key's name. Source: the
keys of the `gguf` package (`gguf.constants.Keys`) and what llama.cpp's `llama_model::load_hparams` does with each.
"""

from __future__ import annotations

from typing import Any

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader

USE_SAFETENSORS = "use the model's safetensors instead"

HARMLESS = {
    "vocab_size": "the embedding's height says it",
    "tensor_data_layout": "a remark: llama.cpp only prints it",
    "rope.scaling.finetuned": "a remark on how the model was made",
    "rope.scaling.original_context_length": "read where positions are scaled; else it scales nothing",
    "pooling_type": "for text embeddings, which are not computed here",
}
# Values at which a key changes nothing: 0 is off, and a product with 1 is none.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_gating_func": (0, 1),  # unset, and the softmax that all families here use
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
    "use_parallel_residual": (False,),
}
# llama.cpp reads no keys but these and its architecture's; others are remarks of whoever made the file.
_READ_ELSEWHERE = ("adapter", "clip", "diffusion", "xielu")


class GgufKeys:
    """A file's keys under its architecture's name, each marked as read when it is asked for."""

    def __init__(self, header: GgufHeader) -> None:
        prefix = f"{header.architecture}."
        self._file = header.file.name
        self._prefix = prefix
        self._about = {key.removeprefix(prefix): v for key, v in header.metadata.items() if key.startswith(prefix)}
        self._strange = [key for key in header.metadata if key.split(".")[0] in _READ_ELSEWHERE]
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Read a key, or the default where the file does not have it."""
        self._read.add(key)
        return self._about.get(key, default)

    def need(self, key: str) -> Any:
        """Read a key that no model can do without.

        Raises:
            ModelError: the file lacks it.
        """
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self._file} lacks the key {self._prefix}{key}", "download the GGUF file again")
        return value

    def same(self, key: str, default: Any = None) -> Any:
        """Read a key that may have one value a layer, all of which must be equal."""
        value = self.get(key, default)
        if not isinstance(value, tuple):
            return value
        if len(set(value)) > 1:
            raise self.refused(key, value, "differs between layers, which is not supported")
        return value[0]

    def expect(self, key: str, value: Any) -> None:
        """Refuse a key whose value is not the only one that the model can have.

        Raises:
            ModelError: it has another one.
        """
        found = self.same(key, value)
        if found != value:
            raise self.refused(key, found, f"is not supported, only {value}")

    def refused(self, key: str, value: Any, why: str) -> ModelError:
        """Make the error for a key that cannot be applied."""
        return ModelError(f"{self._file}: {self._prefix}{key} = {value} {why}", USE_SAFETENSORS)

    def check_all_read(self) -> None:
        """Refuse a key that nobody has read and that may change numbers.

        Raises:
            ModelError: there is one.
        """
        for key in self._strange:
            raise ModelError(f"{self._file}: the key {key} is not known here and may change numbers", USE_SAFETENSORS)
        for key, value in self._about.items():
            if key in self._read or key in HARMLESS:
                continue
            values = value if isinstance(value, tuple) else (value,)
            if key not in NEUTRAL or any(each not in NEUTRAL[key] for each in values):
                raise self.refused(key, value, "is not known here and may change numbers")
