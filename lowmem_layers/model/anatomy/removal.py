"""Take sublayers out of a model in place, and put the very same modules back.

Removing a sublayer drops its branch and keeps the skip connection: x + f(x) becomes x (paper, section 3). The stub
that stands in for f therefore returns fresh zeros, in the form in which the layer's code expects f's output. (An
`nn.Identity` would add the normalised input to the residual stream.) A few families hand the residual into the
sublayer and expect the sum back (BLOOM's, MPT's feed-forward): there the stub returns the residual as it came.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.anatomy.dissection import Anatomy, LayerAnatomy


class Stub(nn.Module):
    """Stands in for a removed sublayer: returns zeros (or the residual) of the right shape, dtype and form."""

    def __init__(self, removed: nn.Module, *, out_features: int | None, returns_pair: bool) -> None:
        super().__init__()
        self._signature = inspect.signature(removed.forward)
        self._out_features = out_features
        self._returns_pair = returns_pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs).arguments
        output = given.get("residual")
        if output is None:
            hidden = next(value for value in given.values() if isinstance(value, torch.Tensor))
            width = hidden.shape[-1] if self._out_features is None else self._out_features
            output = hidden.new_zeros(*hidden.shape[:-1], width)  # fresh: some families add to it in place
        return (output, None) if self._returns_pair else output


@contextmanager
def without(anatomy: Anatomy, removed: Iterable[int]) -> Iterator[None]:
    """Remove the sublayers at the given player positions for the length of a `with` block.

    The modules are swapped in place and the very same objects come back, also after an exception.
    """
    chosen = [anatomy.players[position] for position in removed]
    with _swapped([(anatomy.layers[p.layer], p.kind) for p in chosen]):
        yield


@contextmanager
def layer_without(layer: LayerAnatomy, *kinds: str) -> Iterator[None]:
    """Remove sublayers of one decoder layer (`attn`, `ffn`) for the length of a `with` block."""
    with _swapped([(layer, kind) for kind in kinds]):
        yield


@contextmanager
def _swapped(targets: list[tuple[LayerAnatomy, str]]) -> Iterator[None]:
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for layer, kind in targets:
            names = layer.children_of(kind)
            modules: list[Any] = [getattr(layer.layer, name) for name in names]
            if len(names) == 1:
                pair = kind == "attn" or layer.ffn_returns_tuple
                stubs = [Stub(modules[0], out_features=None, returns_pair=pair)]
            else:
                # Two matrices in the layer itself (fc1, fc2): the first only narrows, so that nothing is computed.
                widths = (1, modules[1].out_features)
                stubs = [Stub(m, out_features=w, returns_pair=False) for m, w in zip(modules, widths, strict=True)]
            for name, module, stub in zip(names, modules, stubs, strict=True):
                kept.append((layer.layer, name, module))
                setattr(layer.layer, name, stub)
        yield
    finally:
        for parent, name, module in reversed(kept):
            setattr(parent, name, module)
