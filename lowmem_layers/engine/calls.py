"""A layer's captured arguments, stretched from the rows of a batch to several states of the same rows.

Which of the tensors that a layer is called with grow with the batch is seen by capturing them twice, for a batch and
for one twice as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lowmem_layers.model.anatomy.forward import LayerCall

Growth = Any
"""True where a tensor grows with the batch, False where not; tuples, lists and dicts of that elsewhere."""


def growth(once: Any, twice: Any) -> Growth:
    """Compare arguments captured for a batch and for one twice as large.

    Shapes: the same nested form as the arguments, with a bool for every leaf.
    """
    if isinstance(once, LayerCall):
        return growth((once.args, once.kwargs), (twice.args, twice.kwargs))
    if isinstance(once, torch.Tensor):
        return once.dim() > 0 and twice.shape[0] == 2 * once.shape[0]
    if isinstance(once, tuple | list):
        return [growth(a, b) for a, b in zip(once, twice, strict=True)]
    if isinstance(once, dict):
        return {key: growth(value, twice[key]) for key, value in once.items()}
    return False


@dataclass
class Stretcher:
    """Stretches calls of one batch; a tensor that many layers share is stretched once for each number of states."""

    growths: Sequence[Growth]
    _done: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def stretch(self, layer: int, call: LayerCall, n_states: int) -> LayerCall:
        """Repeat what grows with the batch for `n_states` states, state by state."""
        args_grow, kwargs_grow = self.growths[layer]
        return LayerCall(
            tuple(self._stretch(v, grows, n_states) for v, grows in zip(call.args, args_grow, strict=True)),
            {key: self._stretch(v, kwargs_grow[key], n_states) for key, v in call.kwargs.items()},
        )

    def forget(self) -> None:
        """Let go of the stretched tensors, at the end of a layer's visit."""
        self._done.clear()

    def _stretch(self, value: Any, grows: Growth, n_states: int) -> Any:
        if isinstance(value, torch.Tensor):
            if not grows or n_states == 1:
                return value
            key = (id(value), n_states)
            if key not in self._done:
                rest = value.shape[1:]
                # what is the same for every row of the batch need not be copied
                wide = value.expand(n_states, *rest) if len(value) == 1 else value.repeat(n_states, *[1] * len(rest))
                self._done[key] = wide
            return self._done[key]
        if isinstance(value, tuple | list):
            return type(value)(self._stretch(v, g, n_states) for v, g in zip(value, grows, strict=True))
        if isinstance(value, dict):
            return {key: self._stretch(v, grows[key], n_states) for key, v in value.items()}
        return value
