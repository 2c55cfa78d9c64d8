"""The plan of a run: which coalitions are measured, and which items share a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.errors import RecordError
from lowmem_layers.game.players.coalitions import Removed


@dataclass(frozen=True)
class TilePlan:
    """Coalitions (the full model first) and tiles (item indices, ascending within a tile)."""

    coalitions: tuple[Removed, ...]
    tiles: tuple[tuple[int, ...], ...]


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
