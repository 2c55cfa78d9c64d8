"""Rendered items, with the scored part marked, so that a task can be looked at before anything is run."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from lowmem_layers.tasks.encode import split_pair
from lowmem_layers.tasks.items import Item, Task

_TEXT_CHARS = 600


@dataclass(frozen=True)
class Segment:
    """A piece of an item's text; `scored` says whether its log-likelihood counts."""

    text: str
    scored: bool


@dataclass(frozen=True)
class ShownChoice:
    """One choice as the model reads it, in pieces, and whether it is the gold one."""

    segments: tuple[Segment, ...]
    gold: bool


@dataclass(frozen=True)
class ShownItem:
    """One item as the model reads it."""

    task: str
    id: str
    cluster: str
    choices: tuple[ShownChoice, ...]


def show_items(task: Task, count: int = 3) -> list[ShownItem]:
    """Render the first items: context unscored, continuation (with the space before it) scored.

    Control characters other than the newline are written as escapes, so that they reach no terminal. Of a plain text,
    which becomes items only as tokens, the beginning is shown; all of it is scored.
    """
    return [_show(task, item) for item in islice(task.items, count)]


def _show(task: Task, item: Item) -> ShownItem:
    pairs: Iterable[tuple[str, str]] = zip(item.contexts, item.continuations, strict=True)
    if task.windows is not None:
        pairs = [("", item.continuations[0][:_TEXT_CHARS])]
    choices = tuple(ShownChoice(_segments(*split_pair(*pair)), index == item.gold) for index, pair in enumerate(pairs))
    return ShownItem(task.name, item.id, item.cluster, choices)


def _segments(context: str, scored: str) -> tuple[Segment, ...]:
    pieces = (Segment(printable(context), False), Segment(printable(scored), True))
    return tuple(piece for piece in pieces if piece.text)


def printable(text: str) -> str:
    """Write control characters, other than the newline, as escapes."""
    return "".join(sign if sign == "\n" or not _is_control(sign) else ascii(sign)[1:-1] for sign in text)


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs")
