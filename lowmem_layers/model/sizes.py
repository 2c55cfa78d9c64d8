"""How many bytes a model takes, part by part, known from shapes and headers before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch

from lowmem_layers.model.formats import TARGETS
from lowmem_layers.model.homes.experts import slot_numbers
from lowmem_layers.model.homes.places import Place, is_quantised
from lowmem_layers.model.placement import ModelBytes

PackedBytes = Callable[[Place], int]


def packed_bytes(place: Place, target: str, dtype: torch.dtype) -> int:
    """Count what one weight takes when it is packed as none (dense in `dtype`), nf4 or int8."""
    return TARGETS[target if is_quantised(place) else "none"].packed_bytes(place.shape, dtype)


def measure(
    model: Any, places: Iterable[Place], packed: PackedBytes, *, dtype: torch.dtype, source_itemsize: int, process: int
) -> ModelBytes:
    """Add up a model's bytes by where they go.

    `packed` counts one weight's bytes at home. Units: `source_itemsize` in bytes a number, as the checkpoint has them.
    """
    # 1) weights by sublayer, and their bytes and numbers by decoder layer
    sublayers: dict[tuple[int, str], list[Place]] = {}
    at_home: dict[int, int] = {}
    numbers: dict[int, int] = {}
    for place in places:
        sublayers.setdefault((place.layer, place.kind), []).append(place)
        at_home[place.layer] = at_home.get(place.layer, 0) + packed(place)
        numbers[place.layer] = numbers.get(place.layer, 0) + prod(place.shape)
    streamed = [place for group in sublayers.values() for place in group]

    def slots(*, one_expert: bool) -> int:
        """Count the bytes of both slots: the largest attention and the largest feed-forward sublayer."""
        largest: dict[str, int] = {}
        for (_, kind), group in sublayers.items():
            largest[kind] = max(largest.get(kind, 0), slot_numbers(group, one_expert=one_expert))
        return sum(largest.values()) * dtype.itemsize

    # 2) everything that is not streamed stays where the model computes, tied weights once
    elsewhere = {place.key for place in streamed} | set(getattr(model, "all_tied_weights_keys", None) or {})
    kept = [value for name, value in model.state_dict().items() if name not in elsewhere]
    return ModelBytes(
        packed=sum(at_home.values()),
        resident=sum(value.numel() * value.element_size() for value in kept),
        slots=slots(one_expert=False),
        expert_slots=slots(one_expert=True) if any(place.n_experts for place in streamed) else None,
        layer_packed=max(at_home.values(), default=0),
        layer_source=max(numbers.values(), default=0) * (source_itemsize + dtype.itemsize),
        process=process,
    )
