"""Decoder layers visited one at a time: packed at home, dense in a slot for as long as the visit lasts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import nn

from lowmem_layers.model.formats import Packed
from lowmem_layers.model.homes.experts import OneByOne, slot_numbers, split
from lowmem_layers.model.homes.places import Place

SLOT_KINDS = ("attn", "ffn")

GroupKey = tuple[int, str]  # (decoder layer, "attn" or "ffn")


@dataclass(frozen=True)
class Visit:
    """Ask for a decoder layer's sublayers: kinds out of "attn" and "ffn" (an MoE sublayer counts as "ffn")."""

    layer: int
    kinds: frozenset[str]


class LayerStore(Protocol):
    """Bring decoder layers' weights in, in the order of the visits."""

    def sweep(self, visits: Sequence[Visit]) -> Iterator[Visit]:
        """Yield each visit once its weights are dense in the model's own modules; release them afterwards."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say where the weights live and what they take, for run.json."""
        ...


class Feed(Protocol):
    """Deliver packed groups to the compute device, one request after the other, fetching ahead."""

    def stream(self, requests: Sequence[Sequence[GroupKey]]) -> Generator[Mapping[str, Packed], None, None]:
        """Yield each request's packed weights by key; they stay valid until the next one is asked for."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say where the packed weights live and what they take."""
        ...


class ResidentStore:
    """All weights are dense and stay in their modules; a visit is a no-op."""

    def sweep(self, visits: Sequence[Visit]) -> Iterator[Visit]:
        """Yield every visit at once."""
        yield from visits

    def describe(self) -> dict[str, Any]:
        """Say that nothing moves."""
        return {"home": "resident", "packed_bytes": 0, "slot_bytes": 0}


class StreamingStore:
    """Unpack each visited sublayer into a fixed slot, and point the model's parameters at it.

    Between visits the parameters are empty, so that a layer computed outside its visit raises instead of using another
    layer's weights. With `one_expert`, the slot holds one expert of a mixture at a time; see `experts`.
    """

    def __init__(
        self, places: Iterable[Place], feed: Feed, dtype: torch.dtype, device: torch.device, *, one_expert: bool = False
    ) -> None:
        self._feed = feed
        self._one_expert = one_expert
        self._visiting: list[OneByOne] = []
        self._places: dict[GroupKey, list[Place]] = {}
        for place in places:
            self._places.setdefault((place.layer, place.kind), []).append(place)
        self._empty = torch.empty(0, dtype=dtype, device=device)
        # one slot for attention and one for feed-forward sublayers, as large as the largest of its kind
        sizes: dict[str, int] = dict.fromkeys(SLOT_KINDS, 0)
        for (_, kind), group in self._places.items():
            sizes[kind] = max(sizes[kind], slot_numbers(group, one_expert=one_expert))
        self._slots = {kind: torch.empty(size, dtype=dtype, device=device) for kind, size in sizes.items()}
        for place in (place for group in self._places.values() for place in group):
            # a fresh parameter, since one on the meta device cannot be pointed at real memory
            place.module.register_parameter(place.attribute, nn.Parameter(self._empty, requires_grad=False))

    @property
    def slot_bytes(self) -> int:
        """Count the bytes of the dense slots."""
        return sum(slot.numel() * slot.element_size() for slot in self._slots.values())

    def sweep(self, visits: Sequence[Visit]) -> Iterator[Visit]:
        """Yield each visit once its weights are dense in the model's own modules; release them afterwards."""
        requests = [
            [(layer, kind) for layer, kind in self._places if layer == visit.layer and kind in visit.kinds]
            for visit in visits
        ]
        # closed at once where a sweep is abandoned: a feed may have a thread and buffers in use
        with closing(self._feed.stream(requests)) as feed:
            for visit, groups, packed in zip(visits, requests, feed, strict=True):
                try:
                    # each sublayer into its slot, one weight behind the other; divided experts are only made ready
                    for group in groups:
                        places = self._places[group]
                        plain, stacks = split(places) if self._one_expert else (places, {})
                        cursor = 0
                        for place in plain:
                            size, weight = prod(place.shape), packed[place.key]
                            dense = self._slots[place.kind][cursor : cursor + size].view(place.shape)
                            weight.format.unpack(weight, dense)
                            _parameter(place).data = dense
                            cursor += size
                        for module, experts in stacks.items():
                            slot = self._slots[experts[0].kind][cursor:]
                            self._visiting.append(OneByOne(module, experts, packed, slot))
                    yield visit
                finally:
                    while self._visiting:
                        self._visiting.pop().leave()
                    for place in (place for group in groups for place in self._places[group]):
                        _parameter(place).data = self._empty

    def describe(self) -> dict[str, Any]:
        """Say where the weights live, what home and slot take, and how many of a mixture's experts the slot holds."""
        about = {**self._feed.describe(), "slot_bytes": self.slot_bytes}
        if any(place.n_experts for group in self._places.values() for place in group):
            about["experts_in_slot"] = "one at a time" if self._one_expert else "all at once"
        return about


def _parameter(place: Place) -> nn.Parameter:
    return getattr(place.module, place.attribute)
