"""A visited sublayer's linear weights, rounded to a format: they stand in for the sublayer's own while it is computed.

Which weights are rounded is what `--quant` would pack: linear layers and fused experts, no norms, biases, routers or
convolutions. Rows are what one output is summed from, as llama.cpp and bitsandbytes have them: GPT-2's Conv1D and
GPT-OSS's experts, which are stored the other way round, are turned first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.anatomy.dissection import LayerAnatomy
from lowmem_layers.model.change import QuantFormat
from lowmem_layers.model.formats.quantiser import check_width, rounded
from lowmem_layers.model.homes.experts import OneByOne
from lowmem_layers.model.homes.places import Place, is_quantised, sublayer_places


def check_rows(places: Iterable[Place], sublayers: Collection[tuple[int, str]], into: QuantFormat) -> None:
    """See that a format can pack what is to be rounded, by the shapes alone. `sublayers`: decoder layer and role.

    Raises:
        ModelError: a sublayer has no linear weights, or rows that the format cannot pack.
    """
    left = set(sublayers)
    for place in places:
        if (place.layer, place.kind) in sublayers and is_quantised(place):
            left.discard((place.layer, place.kind))
            check_width(place.shape[-2 if _is_turned(place.module) else -1], into, place.key)
    if left:
        layer, role = min(left)
        raise ModelError(
            f"decoder layer {layer}: what stands in the place of {role} has no linear weights that could be quantised",
            "use --change remove, or name other sublayers with --players",
        )


class RoundedWeights:
    """One sublayer's weights as `into` rounds them, made once a visit. They take as much memory as the dense ones.

    Experts that are brought in one at a time are rounded one at a time.
    """

    def __init__(self, layer: LayerAnatomy, kind: str, into: QuantFormat, dtype: torch.dtype) -> None:
        self._into = into
        self._dense: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._singly: list[OneByOne] = []
        places = [place for place in sublayer_places(layer, kind, 0, "", dtype) if is_quantised(place)]
        with torch.inference_mode(False):  # a parameter cannot be pointed at a tensor of inference mode
            for place in places:
                stand_in = place.module.__dict__.get("forward")
                if isinstance(stand_in, OneByOne):
                    self._singly += [stand_in] if stand_in not in self._singly else []
                    continue
                weight: torch.nn.Parameter = getattr(place.module, place.attribute)
                dense = weight.data.clone()
                self._round(place, dense)
                self._dense.append((weight, dense))

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Put the rounded weights in the place of the sublayer's own for the length of a `with` block."""
        own = [weight.data for weight, _ in self._dense]
        try:
            for weight, dense in self._dense:
                weight.data = dense
            for each in self._singly:
                each.treat = self._round
            yield
        finally:
            for (weight, _), before in zip(self._dense, own, strict=True):
                weight.data = before
            for each in self._singly:
                each.treat = None

    def _round(self, place: Place, weight: torch.Tensor) -> None:
        """Round a weight, or one expert's share of it, in place; an expert's biases stay as they are."""
        if not is_quantised(place):
            return
        if not _is_turned(place.module):
            rounded(weight, self._into, weight)
            return
        turned = weight.transpose(-1, -2).contiguous()
        rounded(turned, self._into, turned)
        weight.copy_(turned.transpose(-1, -2))


def _is_turned(module: torch.nn.Module) -> bool:
    """Tell modules that store their weights with one input a row."""
    return type(module).__name__ == "Conv1D" or bool(getattr(module, "is_transposed", False))
