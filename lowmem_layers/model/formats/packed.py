"""A packed tensor: the bytes of one weight at home, and what is needed to turn them into numbers again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Packed:
    """Hold one weight in its packed form.

    `format` names the module of `formats/` that unpacks it, `shape` is the dense weight's, `parts` are the stored
    tensors and `settings` the few numbers and names that are not tensors (they survive a trip through JSON).
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, torch.Tensor]
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Add up the bytes of the stored tensors."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def with_parts(self, parts: Mapping[str, torch.Tensor]) -> Packed:
        """Return the same packed weight over other storage: a copy on another device, a view of a file."""
        return Packed(self.format, self.shape, parts, self.settings)
