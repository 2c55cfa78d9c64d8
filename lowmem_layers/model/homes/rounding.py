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
from lowmem_layers.model.formats import Packed, unpack
from lowmem_layers.model.formats.quantiser import check_width, quantised, quantised_bytes, rounded
from lowmem_layers.model.homes.experts import OneByOne
from lowmem_layers.model.homes.places import Place, is_quantised, sublayer_places


def check_rows(places: Iterable[Place], sublayers: Collection[tuple[int, str]], into: QuantFormat) -> str:
    """See that a format can pack what is to be rounded, by the shapes alone. `sublayers`: decoder layer and role.

    Gives what is to be said where another format has to stand in, else nothing.

    Raises:
        ModelError: a sublayer has no linear weights, or rows that the format cannot pack.
    """
    left, widths = set(sublayers), []
    for place in places:
        if (place.layer, place.kind) in sublayers and is_quantised(place):
            left.discard((place.layer, place.kind))
            check_width(row_width(place), into, place.key)
            widths.append(row_width(place))
    if left:
        layer, role = min(left)
        raise ModelError(
            f"decoder layer {layer}: what stands in the place of {role} has no linear weights that could be quantised",
            "use --change remove, or name other sublayers with --players",
        )
    others = [width for width in widths if into.for_rows(width) != into]
    if not others:
        return ""
    return (
        f"{into.name} packs {into.block} numbers of a row at a time: {len(others)} of {len(widths)} matrices have rows "
        f"of {' or '.join(map(str, sorted(set(others))))}, and are rounded to {into.instead}, as llama-quantize does"
    )


class Shelf:
    """Quantised weights that are kept from tile to tile, packed, in host memory: as many as fit `room_bytes`.

    Quantising searches for the best scales, what is kept is only unpacked.
    """

    def __init__(self, room_bytes: int = 0) -> None:
        self.room_bytes = room_bytes
        self._kept: dict[tuple[torch.nn.Module, str, QuantFormat], Packed] = {}

    def round(self, place: Place, weight: torch.Tensor, into: QuantFormat) -> None:
        """Round a place's weight in place. Shapes: (..., rows, columns), one output's numbers a row."""
        key = (place.module, place.attribute, into)
        if key not in self._kept:
            if quantised_bytes(tuple(weight.shape), into) > self.room_bytes:
                rounded(weight, into, weight)
                return
            packed = quantised(weight, into)
            self._kept[key] = packed.with_parts({name: part.cpu() for name, part in packed.parts.items()})
            self.room_bytes -= packed.n_bytes
        packed = self._kept[key]
        there = packed.with_parts({name: part.to(weight.device) for name, part in packed.parts.items()})
        unpack(there, weight.view(packed.shape))


NO_ROOM = Shelf()


class RoundedWeights:
    """One sublayer's weights as `into` rounds them, made at each visit. They take as much memory as the dense ones.

    Experts that are brought in one at a time are rounded one at a time, and anew for every batch: there is no room.
    """

    def __init__(
        self, layer: LayerAnatomy, kind: str, into: QuantFormat, dtype: torch.dtype, shelf: Shelf = NO_ROOM
    ) -> None:
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
                self._round(place, dense, shelf)
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

    def _round(self, place: Place, weight: torch.Tensor, shelf: Shelf = NO_ROOM) -> None:
        """Round a weight, or one expert's share of it, in place; an expert's biases stay as they are."""
        if not is_quantised(place):
            return
        if not _is_turned(place.module):
            shelf.round(place, weight, self._into)
            return
        turned = weight.transpose(-1, -2).contiguous()
        shelf.round(place, turned, self._into)
        weight.copy_(turned.transpose(-1, -2))


def row_width(place: Place) -> int:
    """Count the numbers that one output is summed from."""
    return place.shape[-2 if _is_turned(place.module) else -1]


def _is_turned(module: torch.nn.Module) -> bool:
    """Tell modules that store their weights with one input a row."""
    return type(module).__name__ == "Conv1D" or bool(getattr(module, "is_transposed", False))
