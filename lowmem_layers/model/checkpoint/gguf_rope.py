"""Rotary position embedding as a GGUF file describes it, in the words of transformers' `rope_parameters`.

llama.cpp turns position p in dimension pair i by p · s · base^(−2i/d) / f_i. The factors f_i lie in the file as a
tensor (`rope_freqs`: Llama 3.1 and later; `rope_factors_short` and `_long`: Phi-3), s is 1 / `rope.scaling.factor`.
transformers' "longrope" computes just that, so Llama 3's factors are handed to it as well. Source: ggml's
`ggml_rope_ext`, llama.cpp's `llama_model::load_hparams` and `get_rope_factors`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.gguf_file import AGAIN, GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import GgufKeys
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_tensor

FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = (FREQUENCIES, SHORT, LONG)

_BASE = 10000.0  # llama.cpp's, where a file names none


def rope_parameters(header: GgufHeader, keys: GgufKeys, n_rotated: int, context: int) -> dict[str, Any]:
    """Describe the rotary embedding. Units: `n_rotated` in dimensions of a head, `context` in tokens.

    Raises:
        ModelError: a kind of scaling that is not known here.
        CheckpointError: factors of the wrong number or kind.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(keys.get("rope.freq_base", _BASE))}
    factor = float(keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1.0)
    kind = keys.get("rope.scaling.type", "linear")  # what llama.cpp takes a factor without a type for
    original = int(keys.get("rope.scaling.original_context_length") or context)
    short, long = (factors(header, name, n_rotated) for name in (SHORT, LONG))
    frequencies = factors(header, FREQUENCIES, n_rotated)
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.refused("rope.scaling.type", kind, "is not known here")
    if kind == "yarn" and (short or long or frequencies):
        raise keys.refused("rope.scaling.type", kind, "stands beside a tensor of factors, which is not known here")
    if kind == "yarn":
        yarn = {
            "attention_factor": float(keys.get("rope.scaling.attn_factor", 1.0))
            * float(keys.get("rope.scaling.yarn_attn_factor", 1.0))
            * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0),
            "beta_fast": float(keys.get("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": float(keys.get("rope.scaling.yarn_beta_slow", 1.0)),
        }
        keys.expect("rope.scaling.yarn_ext_factor", 1.0)
        return rope | {
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **yarn,
        }  # fmt: skip
    if (short is None) != (long is None):
        missing = SHORT if short is None else LONG
        raise CheckpointError(f"{header.file.name} lacks the tensor {missing}", AGAIN)
    scale = 1.0 if kind == "none" else factor
    if short is not None and long is not None:
        return rope | {
            "rope_type": "longrope", "factor": scale, "original_max_position_embeddings": original,
            "attention_factor": float(keys.get("rope.scaling.attn_factor", 1.0)),
            "short_factor": [scale * each for each in short], "long_factor": [scale * each for each in long],
        }  # fmt: skip
    if kind == "longrope":
        raise keys.refused("rope.scaling.type", kind, f"needs the tensors {SHORT} and {LONG}")
    if frequencies is not None and any(each != 1.0 for each in frequencies):
        both = [scale * each for each in frequencies]
        return rope | {
            "rope_type": "longrope", "factor": 1.0, "original_max_position_embeddings": context,
            "attention_factor": 1.0, "short_factor": both, "long_factor": both,
        }  # fmt: skip
    return rope | {"rope_type": "linear", "factor": scale} if scale != 1.0 else rope


def factors(header: GgufHeader, name: str, n_rotated: int) -> list[float] | None:
    """Read a tensor of factors, one for each pair of rotated dimensions; None where the file has none."""
    tensor = header.tensors.get(name)
    if tensor is None:
        return None
    if tensor.quant_type != "F32" or tensor.shape != (n_rotated // 2,):
        raise CheckpointError(
            f"{header.file.name}: {name} is {tensor.quant_type} of shape {tensor.shape}, "
            f"expected F32 of shape {(n_rotated // 2,)}", AGAIN,
        )  # fmt: skip
    entry = TensorEntry(name, tensor.file, torch.float32, tensor.shape, tensor.start, tensor.n_bytes)
    return read_tensor(entry).tolist()
