"""The plan of a run: which coalitions are measured, and which items share a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.errors import EngineError, RecordError
from lowmem_layers.study.contracts import Prepared, Removed
from lowmem_layers.study.game import Game


@dataclass(frozen=True)
class Plan:
    """Coalitions (the full model first) and tiles (item indices, ascending within a tile)."""

    coalitions: tuple[Removed, ...]
    tiles: tuple[tuple[int, ...], ...]


def make_plan(prepared: Prepared, game: Game, order: Sequence[int] | None = None) -> Plan:
    """Plan the game's coalitions over all items, taken in this order (None: their own)."""
    coalitions = tuple(game.removed)
    order = range(len(prepared.encoded)) if order is None else order
    planned = prepared.engine.plan_tiles([prepared.encoded[index] for index in order], coalitions)
    tiles = tuple(tuple(sorted(order[place] for place in tile)) for tile in planned)
    if sorted(index for tile in tiles for index in tile) != list(range(len(prepared.encoded))):
        raise EngineError("the tile plan does not hold every item exactly once")
    return Plan(coalitions, tiles)


def spell_tile(tile: Sequence[int]) -> str:
    """Write item indices as ranges: `0-3 7`."""
    runs: list[list[int]] = []
    for index in tile:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_tile(spelled: str) -> tuple[int, ...]:
    """Read `spell_tile` back.

    Raises:
        RecordError: the text is not a list of ranges.
    """
    indices: list[int] = []
    for part in spelled.split():
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise RecordError(f"{spelled!r} is not a list of items", "run.json is damaged; start the run again")
        indices.extend(range(int(first), int(last or first) + 1))
    return tuple(indices)
