"""Items as text with the scored part marked, so that a user can look at a task before a run."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import islice

from lowmem_layers.tasks.encode import split_pair
from lowmem_layers.tasks.items import Task

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
    """Render the first items: the context is not scored, the continuation (with the space before it) is.

    A plain text becomes items only when it is encoded, so its first 600 characters are shown as one scored piece.
    """
    shown: list[ShownItem] = []
    for item in islice(task.items, count):
        pairs = list(zip(item.contexts, item.continuations, strict=True))
        if task.windows is not None:
            pairs = [("", item.continuations[0][:_TEXT_CHARS])]
        choices = []
        for index, pair in enumerate(pairs):
            context, scored = split_pair(*pair)
            segments = (Segment(printable(context), False), Segment(printable(scored), True))
            choices.append(ShownChoice(tuple(piece for piece in segments if piece.text), index == item.gold))
        shown.append(ShownItem(task.name, item.id, item.cluster, tuple(choices)))
    return shown


def printable(text: str) -> str:
    """Write control characters, other than the newline, as escapes: a terminal must not obey a data set."""
    # Cc control characters; Cf invisible ones, such as those that turn the writing direction; Cs half surrogate pairs
    obeyed = ("Cc", "Cf", "Cs")
    return "".join(
        ascii(sign)[1:-1] if sign != "\n" and unicodedata.category(sign) in obeyed else sign for sign in text
    )
