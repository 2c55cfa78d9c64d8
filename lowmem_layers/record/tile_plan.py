"""The plan of a run: which coalitions are measured, and which items share a tile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.game.players.coalitions import Removed

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class TilePlan:
    """Coalitions (the full model first) and tiles (item indices, ascending within a tile)."""

    coalitions: tuple[Removed, ...]
    tiles: tuple[tuple[int, ...], ...]


def spell_tile(tile: Sequence[int]) -> str:
    """Write item indices as ranges: `0-3 7`."""
    if len(tile) == 1:  # there may be a hundred thousand of these
        return str(tile[0])
    runs: list[list[int]] = []
    for index in tile:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_tile(spelled: str, n_items: int) -> tuple[int, ...]:
    """Read `spell_tile` back: indices of a run that has `n_items` items.

    Raises:
        ValueError: the text is not a list of ranges of such items.
    """
    if spelled.isascii() and spelled.isdigit() and len(spelled) < 10 and int(spelled) < n_items:  # as most are
        return (int(spelled),)
    indices: list[int] = []
    for part in spelled.split():
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, n_items)
        if last >= n_items:  # checked before a range is written out: a damaged one could fill the memory
            raise ValueError(f"tiles: {spelled!r:.40} is not a list of {n_items} items")
        indices.extend(range(first, last + 1))
        if len(indices) > n_items:
            raise ValueError(f"tiles: {spelled!r:.40} holds more than the {n_items} items that there are")
    return tuple(indices)
