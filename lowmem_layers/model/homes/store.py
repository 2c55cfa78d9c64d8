"""Decoder layers visited one at a time: packed at home, dense in a slot for as long as the visit lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import nn

from lowmem_layers.model.formats import Packed, unpack
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

    def stream(self, requests: Sequence[Sequence[GroupKey]]) -> Iterator[Mapping[str, Packed]]:
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
        sizes = {kind: self._largest(kind) for kind in SLOT_KINDS}
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
        requests = [[key for key in self._places if _asked(key, visit)] for visit in visits]
        feed = self._feed.stream(requests)
        try:
            for visit, groups, packed in zip(visits, requests, feed, strict=True):
                try:
                    for group in groups:
                        self._enter(self._places[group], packed)
                    yield visit
                finally:
                    for group in groups:
                        self._leave(self._places[group])
        finally:
            feed.close() if hasattr(feed, "close") else None  # type: ignore[attr-defined]

    def describe(self) -> dict[str, Any]:
        """Say where the weights live, what home and slot take, and how many of a mixture's experts the slot holds."""
        about = {**self._feed.describe(), "slot_bytes": self.slot_bytes}
        if any(place.n_experts for group in self._places.values() for place in group):
            about["experts_in_slot"] = "one at a time" if self._one_expert else "all at once"
        return about

    def _enter(self, places: Sequence[Place], packed: Mapping[str, Packed]) -> None:
        plain, stacks = split(places) if self._one_expert else (places, {})
        cursor = 0
        for place in plain:
            size = prod(place.shape)
            dense = self._slots[place.kind][cursor : cursor + size].view(place.shape)
            unpack(packed[place.key], dense)
            _parameter(place).data = dense
            cursor += size
        for module, group in stacks.items():
            self._visiting.append(OneByOne(module, group, packed, self._slots[group[0].kind][cursor:]))

    def _leave(self, places: Sequence[Place]) -> None:
        while self._visiting:
            self._visiting.pop().leave()
        for place in places:
            _parameter(place).data = self._empty

    def _largest(self, kind: str) -> int:
        groups = [group for (_, group_kind), group in self._places.items() if group_kind == kind]
        return max((slot_numbers(group, one_expert=self._one_expert) for group in groups), default=0)


def _asked(key: GroupKey, visit: Visit) -> bool:
    layer, kind = key
    return layer == visit.layer and kind in visit.kinds


def _parameter(place: Place) -> nn.Parameter:
    return getattr(place.module, place.attribute)
