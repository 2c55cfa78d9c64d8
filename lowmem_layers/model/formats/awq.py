"""AWQ weights as AutoAWQ writes them (version "gemm"), and auto-round in AutoAWQ's layout.

`qweight` packs eight four-bit codes of one input in a word, in the order in which AutoAWQ's kernel takes them; `qzeros`
does the same for the zero points of each group, `scales` has one row a group. Here the codes of an output stand one
after the other, as in other formats; they take the same bytes. Source: Lin et al., AWQ (2024), and AutoAWQ's file
format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored
from lowmem_layers.model.formats.scaled import SCALED, fields, needed, words_of

_BITS = 4
_A_WORD = 8  # codes
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # which field of a word holds the first output, the second, …
_NUMBERS_AT_ONCE = 1 << 21  # while codes are put in another order, they take up to twenty bytes each


@dataclass(frozen=True)
class AwqConfig:
    """What the config says: inputs that share a scale, −1 for all of them."""

    group_size: int


@dataclass(frozen=True)
class Awq:
    """Four-bit codes and zero points, float16 scales."""

    name: str = "awq"
    title: str = "AWQ"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")
    scales: tuple[str, ...] = ("scales",)

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of AutoAWQ, in config.json's words or in those of its older `quant_config.json`.

        Raises:
            CheckpointError: the layout, the width or the group size is not one that is read.
        """
        if about["quant_method"] != "awq":
            return None
        where = "config.json: the AWQ config"
        bits, version = about.get("bits", about.get("w_bit", _BITS)), str(about.get("version", "gemm")).lower()
        if bits != _BITS:
            raise CheckpointError(f"{where} says {bits!r} bits", "AWQ is read in 4 bits")
        if version != "gemm":
            raise CheckpointError(f"{where} says version {version!r}", "the layout 'gemm' is read")
        size = about.get("group_size", about.get("q_group_size", 128))
        if not isinstance(size, int) or isinstance(size, bool) or size == 0 or size < -1:
            raise CheckpointError(f"{where} says group_size {size!r}", "a group has a positive size, or −1 for all")
        return OwnPacking(self, _BITS, "AWQ 4-bit", AwqConfig(size))

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count words and scales, and a byte for each zero point."""
        n_bytes = sum(part.n_bytes for key, part in parts.items() if key != "qzeros")
        return n_bytes + (prod(parts["scales"].shape) if "scales" in parts else 0)

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one linear layer's tensors.

        Shapes: qweight (in, out / 8) and qzeros (groups, out / 8) in int32, scales (groups, out). The dense weight is
        (out, in).

        Raises:
            CheckpointError: a part is missing, or contradicts the group size or another part.
        """
        where = f"{file}: {name.removesuffix('.weight')}"
        if not isinstance(settings, AwqConfig):
            raise CheckpointError(f"{where} is packed by AWQ, but config.json does not say so", SAVED_WITH)
        qweight, qzeros, scales = needed(where, tensors, *self.parts)
        inputs, outputs = qweight.shape[0], qweight.shape[1] * _A_WORD
        size = inputs if settings.group_size < 0 else settings.group_size
        if qzeros.shape != (-(-inputs // size), qweight.shape[1]) or inputs % _A_WORD:
            raise CheckpointError(
                f"{where}: qweight of shape {tuple(qweight.shape)} and qzeros of {tuple(qzeros.shape)} do not go"
                f" together in groups of {size}",
                "the checkpoint's quantisation config contradicts its tensors",
            )
        words = torch.empty(outputs, inputs // _A_WORD, dtype=torch.int32)
        step = max(1, _NUMBERS_AT_ONCE // (inputs * _A_WORD))  # columns of words
        for start in range(0, qweight.shape[1], step):
            codes = _in_order(qweight[:, start : start + step])  # (in, outputs of these columns)
            words[start * _A_WORD : start * _A_WORD + codes.shape[1]] = words_of(codes.T, _BITS)
        zeros = _in_order(qzeros).T.to(torch.uint8)  # (out, groups)
        return SCALED.pack(
            where, words, scales.T, (outputs, inputs), kind="stream", bits=_BITS, block=(1, size), zero=zeros
        )


AWQ = Awq()


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """Unpack words into codes, those of one input in the order of its outputs. Shapes: (n, words) to (n, outputs)."""
    return fields(words, _BITS).unflatten(-1, (-1, _A_WORD))[..., list(_ORDER)].flatten(-2)
