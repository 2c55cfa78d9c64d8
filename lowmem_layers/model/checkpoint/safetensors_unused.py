"""Tensors of a checkpoint that no weight of the model is read from: known to be harmless, with the reason, or refused.

Older versions of transformers saved what a model computes itself (rotary frequencies, causal masks), and some writers
save a bias of zeros for a layer that has none. Whatever is not proven harmless here would change the model's numbers
if it were left out without a word, so it is refused by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_tensor

_OTHER_MODEL = "config.json and the weights belong to different models"
_FREQUENCY_TOLERANCE = 0.01  # relative; frequencies were saved in bfloat16, whose steps are 0.8 %

Proof = Callable[[TensorEntry, Any], bool]


def _is_frequencies(entry: TensorEntry, model: Any) -> bool:
    """Compare rotary frequencies with those that the model computes, where it scales them in no way."""
    computed = [value for name, value in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    alike = [value for value in computed if tuple(value.shape) == entry.shape]
    rope = getattr(model.config, "rope_parameters", None) or {}
    if not alike or rope.get("rope_type", "default") != "default":
        return len(entry.shape) == 1
    stored = read_tensor(entry).float()
    return any(torch.allclose(stored, value.float().cpu(), rtol=_FREQUENCY_TOLERANCE, atol=0) for value in alike)


def _is_causal_mask(entry: TensorEntry, model: Any) -> bool:
    """Tell a mask of ones on and below the diagonal. Shapes: (1, 1, n, n)."""
    if len(entry.shape) != 4 or entry.shape[:2] != (1, 1) or entry.shape[2] != entry.shape[3]:
        return False
    mask = read_tensor(entry)[0, 0]  # (n, n)
    return torch.equal(mask != 0, torch.ones_like(mask, dtype=torch.bool).tril())


def _is_one_number(entry: TensorEntry, model: Any) -> bool:
    return entry.shape in ((), (1,))


def _is_zeros(entry: TensorEntry, model: Any) -> bool:
    return not read_tensor(entry).any()


def _is_counting(entry: TensorEntry, model: Any) -> bool:
    found = read_tensor(entry).flatten()
    return torch.equal(found.long(), torch.arange(len(found)))


# the ending of a tensor's name, what it has to be, and why leaving it out changes nothing
_HARMLESS: tuple[tuple[re.Pattern[str], Proof, str], ...] = (
    (re.compile(r"(^|\.)rotary_emb\.inv_freq$"), _is_frequencies, "rotary frequencies, which the model computes"),
    (re.compile(r"\.(attn|attention|self_attn)\.bias$"), _is_causal_mask, "causal masks, which the model computes"),
    (re.compile(r"\.(attn|attention|self_attn)\.masked_bias$"), _is_one_number, "the constant of old causal masks"),
    (re.compile(r"(^|\.)position_ids$"), _is_counting, "position numbers, which the model counts"),
    (re.compile(r"\.bias$"), _is_zeros, "biases of zeros, where the model has none"),
    (
        re.compile(r"\.(k_scale|v_scale|kv_scale|q_scale|prob_output_scale|[kv]_proj\.output_scale)$"),
        _is_one_number,
        "scales of a quantised cache of keys and values, which is not used here",
    ),
)


class Unused:
    """Collect the tensors that are left out, with the reason for each.

    `ignores` tells the tensors that the model's own code in transformers leaves out.
    """

    def __init__(self, model: Any, ignores: Callable[[str], bool]) -> None:
        self._model, self._ignores = model, ignores
        self._names: dict[str, list[str]] = defaultdict(list)  # by reason

    def leave_out(self, name: str, entry: TensorEntry) -> None:
        """Leave a tensor out for a reason that is known.

        Raises:
            CheckpointError: none is known.
        """
        for ending, proof, reason in _HARMLESS:
            if ending.search(name) and proof(entry, self._model):
                self._names[reason].append(name)
                return
        if not self._ignores(name):
            raise CheckpointError(f"{entry.file.name}: the model has no place for the tensor {name}", _OTHER_MODEL)
        self._names["transformers' code for this model leaves them out"].append(name)

    def note(self, name: str, reason: str) -> None:
        """Leave a tensor out for a reason that the caller knows."""
        self._names[reason].append(name)

    def lines(self) -> list[str]:
        """Say once for each reason what was left out."""
        lines = []
        for reason, names in self._names.items():
            count = f"{len(names)} tensors are" if len(names) > 1 else "1 tensor is"
            lines.append(f"{count} not used ({reason}): {names[0]}" + (", …" if len(names) > 1 else ""))
        return lines


def refuse_codes(name: str, entry: TensorEntry) -> None:
    """Refuse a weight of codes that lies in the file as if it were plain: without scales they mean nothing.

    Raises:
        CheckpointError: its numbers are bytes or eight-bit floats.
    """
    if entry.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        kind = str(entry.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{entry.file.name}: {name} holds numbers of type {kind}, but no scales for them lie beside it",
            "the checkpoint is incomplete, or packed in a way that config.json does not name",
        )
