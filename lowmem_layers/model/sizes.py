"""How many bytes a model takes, part by part, known from shapes and headers before a weight is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any

import torch

from lowmem_layers.model.homes.experts import slot_numbers
from lowmem_layers.model.homes.places import Place, is_quantised
from lowmem_layers.model.placement import ModelBytes

_NF4_BLOCK, _NF4_TABLE_BYTES = 64, 64  # one float32 scale a block, 16 float32 levels a weight

PackedBytes = Callable[[Place], int]


def packed_bytes(place: Place, target: str, dtype: torch.dtype) -> int:
    """Count what one weight takes when it is packed as none (dense in `dtype`), nf4 or int8."""
    numbers = prod(place.shape)
    if target == "none" or not is_quantised(place):
        return numbers * dtype.itemsize
    if target == "nf4":
        return -(-numbers // 2) + -(-numbers // _NF4_BLOCK) * 4 + _NF4_TABLE_BYTES
    return numbers + numbers // place.shape[-1] * 4


def measure(
    model: Any, places: Iterable[Place], packed: PackedBytes, *, dtype: torch.dtype, source_itemsize: int, process: int
) -> ModelBytes:
    """Add up a model's bytes by where they go.

    `packed` counts one weight's bytes at home. Units: `source_itemsize` in bytes a number, as the checkpoint has them.
    """
    at_home: dict[tuple[int, str], int] = defaultdict(int)
    numbers: dict[tuple[int, str], int] = defaultdict(int)
    groups: dict[tuple[int, str], list[Place]] = defaultdict(list)
    streamed: set[str] = set()
    for place in places:
        at_home[place.layer, place.kind] += packed(place)
        numbers[place.layer, place.kind] += prod(place.shape)
        groups[place.layer, place.kind].append(place)
        streamed.add(place.key)
    has_experts = any(place.n_experts for group in groups.values() for place in group)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    kept = {name: value for name, value in model.state_dict().items() if name not in streamed | tied}
    return ModelBytes(
        packed=sum(at_home.values()),
        resident=sum(value.numel() * value.element_size() for value in kept.values()),
        slots=_slots(groups, one_expert=False) * dtype.itemsize,
        expert_slots=_slots(groups, one_expert=True) * dtype.itemsize if has_experts else None,
        layer_packed=_largest_layer(at_home),
        layer_source=_largest_layer(numbers) * (source_itemsize + dtype.itemsize),
        process=process,
    )


def _slots(groups: Mapping[tuple[int, str], list[Place]], *, one_expert: bool) -> int:
    """Count the numbers of both slots: the largest attention and the largest feed-forward sublayer."""
    largest: dict[str, int] = defaultdict(int)
    for (_, kind), group in groups.items():
        largest[kind] = max(largest[kind], slot_numbers(group, one_expert=one_expert))
    return sum(largest.values())


def _largest_layer(amounts: dict[tuple[int, str], int]) -> int:
    by_layer: dict[int, int] = defaultdict(int)
    for (layer, _), amount in amounts.items():
        by_layer[layer] += amount
    return max(by_layer.values(), default=0)
