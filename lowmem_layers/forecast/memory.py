"""What a run would take of memory, by the functions that the run itself uses for placement and tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lowmem_layers.engine.budget import (
    Widths,
    needed_room,
    plan_tiles,
    sizes_for,
    sizes_within,
    tile_bytes,
    tile_work_for,
)
from lowmem_layers.forecast.machine import Machine
from lowmem_layers.game.players.tree import PrefixTree
from lowmem_layers.model.memory import available_host_bytes
from lowmem_layers.model.placement import GPU_CONTEXT_BYTES, limits_now, place_with_states
from lowmem_layers.model.shape import ModelShape
from lowmem_layers.model.spec import Offload

_PLENTY_BYTES = 1 << 50


@dataclass(frozen=True)
class Limits:
    """What the user allows. Units: bytes; None sets no limit. `shared_by` workers share the memory of this host."""

    offload: Offload
    gpu: int | None
    cpu: int | None
    shared_by: int = 1


@dataclass(frozen=True)
class Tokens:
    """What the tasks come to, an item an entry.

    Units: `trunk` in tokens of the item's rows, of which `scored` are; `squares` adds up its rows' squared lengths.
    `whose` says whose tokens these are, and where from; `n_cut` items are too long for the model (None: not known).
    """

    trunk: tuple[int, ...]
    scored: tuple[int, ...]
    squares: tuple[int, ...]
    whose: str
    n_cut: int | None = None


@dataclass(frozen=True)
class Memory:
    """What a run takes at most.

    Units: bytes; `tile_tokens` of the largest sweep. `gpu` is 0 without a GPU. `slots` and `staging` hold a layer's
    weights; `states` are the largest tile's, `chunk` one chunk's intermediates or its logits; `loading` is the host's
    while the model is loaded; `shelf` holds quantised weights that are kept from tile to tile. `tile_shares` are the
    shares of the tiles in the whole work.
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
    tile_shares: tuple[float, ...]
    shelf: int = 0

    @property
    def n_tiles(self) -> int:
        """Count the tiles."""
        return len(self.tile_shares)

    @property
    def peak_host(self) -> int:
        """Predict the most host memory that the process occupies."""
        return max(self.loading, self.host)


def forecast_memory(shape: ModelShape, limits: Limits, machine: Machine, tree: PrefixTree, tokens: Tokens) -> Memory:
    """Place the weights and cut the tiles as the run would.

    Raises:
        BudgetError: the model, or the states of one item, do not fit the memory given.
    """
    device, on_gpu = torch.device("cuda" if machine.is_gpu else "cpu"), machine.is_gpu
    widths = Widths.of(shape)
    costs = [widths.count(*item, tree) for item in zip(tokens.trunk, tokens.scored, tokens.squares, strict=True)]
    # 1) where the weights live; a machine with a named card is taken to have host memory enough
    allowed = limits_now(
        on_gpu=on_gpu,
        gpu=limits.gpu,
        cpu=None if limits.cpu is None else limits.cpu // limits.shared_by,
        streams=machine.streams,
        free_gpu=machine.memory_bytes - GPU_CONTEXT_BYTES if on_gpu else 0,
        free_cpu=(shape.n_bytes.process + available_host_bytes()) // limits.shared_by
        if machine.measured
        else _PLENTY_BYTES,
    )
    room = needed_room(shape, device, max((tile_bytes([cost]) for cost in costs), default=0))
    placed = place_with_states(shape.n_bytes, limits.offload, allowed, room=room)
    # 2) what they leave for states and a chunk, and the tiles that this makes
    budget = placed.states_bytes
    sizes = sizes_within(sizes_for(device, shape.vocabulary), widths, device, budget)
    work = tile_work_for(device, shape.n_streamed)
    tiles = plan_tiles(costs, range(len(costs)), widths.room_beside(sizes, budget), work)
    # 3) the largest tile, with chunks no larger than what there is to fill them
    states = max((tile_bytes(costs[index] for index in tile) for tile in tiles), default=0)
    total = max(1, sum(cost.work for cost in costs))
    tile_tokens = max((sum(tokens.trunk[index] for index in tile) for tile in tiles), default=0)
    filled = replace(
        sizes,
        chunk_tokens=min(sizes.chunk_tokens, tree.n_slots * tile_tokens),
        head_rows=min(sizes.head_rows, tree.n_slots * max(tokens.scored, default=0)),
    )
    chunk = widths.chunk_bytes(filled)
    return Memory(
        home=placed.home,
        slots=placed.slot_bytes,
        staging=placed.staging_bytes,
        shelf=placed.shelf_bytes,
        gpu=placed.gpu_bytes + states + chunk if on_gpu else 0,
        host=placed.cpu_bytes + (0 if on_gpu else states + chunk),
        states=states,
        chunk=chunk,
        loading=placed.loading_bytes,
        tile_tokens=tile_tokens,
        tile_shares=tuple(sum(costs[index].work for index in tile) / total for tile in tiles),
    )
