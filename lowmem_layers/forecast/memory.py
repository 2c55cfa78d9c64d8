"""What a run would take of memory, by the functions that the run itself uses for placement and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lowmem_layers.engine.budget import (
    ItemCost,
    Widths,
    needed_room,
    plan_tiles,
    sizes_for,
    sizes_within,
    states_bytes,
    tile_work_for,
)
from lowmem_layers.forecast.machine import Machine
from lowmem_layers.game.players.tree import PrefixTree
from lowmem_layers.model.memory import available_host_bytes
from lowmem_layers.model.placement import Placement, place_with_states
from lowmem_layers.model.shape import ModelShape
from lowmem_layers.model.spec import Offload


@dataclass(frozen=True)
class Limits:
    """What the user allows. Units: bytes; None sets no limit."""

    offload: Offload
    gpu: int | None
    cpu: int | None


@dataclass(frozen=True)
class Memory:
    """What a run takes at most.

    Units: bytes; `tile_tokens` of the largest sweep. `gpu` is 0 without a GPU. `slots` and `staging` hold a layer's
    weights; `states` are the largest tile's, `chunk` one chunk's intermediates or its logits; `loading` is the host's
    while the model is loaded.
    """

    home: str
    slots: int
    staging: int
    gpu: int
    host: int
    states: int
    chunk: int
    loading: int
    tile_tokens: int
    n_tiles: int

    @property
    def peak_host(self) -> int:
        """Predict the most host memory that the process occupies."""
        return max(self.loading, self.host)


def foresee_memory(
    shape: ModelShape, limits: Limits, machine: Machine, itemsize: int, tree: PrefixTree,
    trunk: Sequence[int], scored: Sequence[int],
) -> Memory:  # fmt: skip
    """Place the weights and cut the tiles as the run would, for items of so many tokens, of which so many are scored.

    Units: `itemsize` in bytes a number of the states.

    Raises:
        BudgetError: the model, or the states of one item, do not fit the memory given.
    """
    widths = Widths(shape.macs, shape.hidden, shape.widest, shape.vocabulary, itemsize)
    costs = [widths.count(t, s, t * t, tree) for t, s in zip(trunk, scored, strict=True)]
    kind = torch.device("cuda" if machine.is_gpu else "cpu")
    placed = _placed(shape, limits, machine, needed_room(shape, kind, itemsize, tree, max(trunk, default=0)))
    room = _room(placed, limits, machine)
    sizes = sizes_within(sizes_for(kind, shape.vocabulary), widths, kind, room)
    tiles = plan_tiles(costs, range(len(costs)), room - widths.chunk_bytes(sizes), tile_work_for(kind))
    tile_tokens = max((sum(trunk[index] for index in tile) for tile in tiles), default=0)
    filled = replace(
        sizes,
        chunk_tokens=min(sizes.chunk_tokens, tree.n_slots * tile_tokens),
        head_rows=min(sizes.head_rows, tree.n_slots * max(scored, default=0)),
    )
    return _added_up(placed, machine, costs, tiles, widths.chunk_bytes(filled), tile_tokens)


def _placed(shape: ModelShape, limits: Limits, machine: Machine, room: int) -> Placement:
    """Choose the home; a machine with a named card is taken to have host memory enough."""
    here = shape.n_bytes.process + available_host_bytes() if machine.measured else None
    gpu = min(limits.gpu or machine.memory_bytes, machine.memory_bytes) if machine.is_gpu else None
    return place_with_states(
        shape.n_bytes, limits.offload, on_gpu=machine.is_gpu, gpu_limit=gpu, cpu_limit=limits.cpu or here, room=room
    )


def _room(placed: Placement, limits: Limits, machine: Machine) -> int:
    """Give the states and a chunk what the model leaves. Units: bytes."""
    if machine.is_gpu:
        given = None if limits.gpu is None else min(limits.gpu, machine.memory_bytes)
        return states_bytes(given, placed.gpu_bytes, machine.memory_bytes - placed.gpu_bytes)
    return states_bytes(limits.cpu, placed.cpu_bytes, None)


def _added_up(
    placed: Placement, machine: Machine, costs: Sequence[ItemCost], tiles: Sequence[Sequence[int]], chunk: int,
    tile_tokens: int,
) -> Memory:  # fmt: skip
    states = max((sum(costs[index].n_bytes for index in tile) for tile in tiles), default=0)
    tile = states + chunk
    return Memory(
        home=placed.home,
        slots=placed.slot_bytes,
        staging=placed.staging_bytes,
        gpu=placed.gpu_bytes + tile if machine.is_gpu else 0,
        host=placed.cpu_bytes + (0 if machine.is_gpu else tile),
        states=states,
        chunk=chunk,
        loading=placed.loading_bytes,
        tile_tokens=tile_tokens,
        n_tiles=len(tiles),
    )
