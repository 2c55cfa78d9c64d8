"""Token tries: the token sequences of an item's choices (or of several items), their shared beginnings stored once.

A row of a batch holds one trie: node i has a token and a parent, and sees its ancestors and itself. The
log-probability of a continuation's token is read at the node of the token before it, so choices with a common context
share that node too. A plain sequence is a trie that never branches: the form for families that can't take any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import numpy as np

from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

Cost = Callable[[int], float]
"""What a row of T nodes costs, in any unit."""


LEAST_SAVED = 8
"""Items are merged for so many nodes at least: an item's attention is summed in another order beside others."""


@dataclass(frozen=True)
class Target:
    """Where one choice of one item is scored: at `nodes[j]` stands the token before `tokens[j]`.

    With `is_likeliest`, the likeliest token there is scored instead of `tokens[j]`.
    """

    item: int
    choice: int
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    is_likeliest: bool = False


@dataclass(frozen=True)
class Row:
    """One trie. Shapes: `tokens`, `parents` have T entries; a parent comes before its children, the root's is −1."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> np.ndarray:
        """Count each node's ancestors. Shapes: (T,)."""
        depths = np.zeros(len(self), dtype=np.int64)
        for node, parent in enumerate(self.parents):
            depths[node] = 0 if parent < 0 else depths[parent] + 1
        return depths

    @cached_property
    def is_chain(self) -> bool:
        """Tell a plain sequence from a trie that branches."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @cached_property
    def scored_nodes(self) -> tuple[int, ...]:
        """List the distinct nodes at which anything is scored, in order."""
        return tuple(sorted({node for target in self.targets for node in target.nodes}))

    def visible(self) -> np.ndarray:
        """Say which node sees which: its ancestors and itself. Shapes: (T, T) bool, row = the one that sees."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def lay_out(items: Sequence[EncodedItem], cost: Cost, deepest: int) -> list[Row]:
    """Lay items out as tries, those with a choice of more than `deepest` nodes as plain rows."""
    deep = {i for i, item in enumerate(items) if max(len(choice.tokens) for choice in item.choices) - 1 > deepest}
    shallow = [i for i in range(len(items)) if i not in deep]
    return trie_rows(items, cost, shallow) + plain_rows(items, sorted(deep))


def plain_rows(items: Sequence[EncodedItem], chosen: Iterable[int] | None = None) -> list[Row]:
    """Lay out every choice of the chosen items (all, if none are named) as a sequence of its own.

    What the likeliest tokens have is read off the sequence of the choice that it belongs to.
    """
    rows = []
    for i in range(len(items)) if chosen is None else chosen:
        choices = list(enumerate(items[i].choices))
        likeliest = [(i, c, choice) for c, choice in choices if choice.is_likeliest]
        rows += [_row([(i, c, choice), *likeliest]) for c, choice in choices if not choice.is_likeliest]
    return rows


def trie_rows(items: Sequence[EncodedItem], cost: Cost, chosen: Iterable[int] | None = None) -> list[Row]:
    """Lay out every chosen item as one trie, and merge items with a common beginning where `cost` says that it pays.

    Items are taken in the order of their tokens, so that those with a long common beginning (few-shot examples, a
    shared passage) stand side by side.
    """
    order = sorted(range(len(items)) if chosen is None else chosen, key=lambda i: items[i].choices[0].tokens)
    rows: list[list[int]] = []
    sizes: list[int] = []
    for i in order:
        alone = _size([i], items)
        if rows:
            merged = _size([*rows[-1], i], items)
            saved = sizes[-1] + alone - merged
            if saved >= LEAST_SAVED and cost(merged) < cost(sizes[-1]) + cost(alone):
                rows[-1].append(i)
                sizes[-1] = merged
                continue
        rows.append([i])
        sizes.append(alone)
    return [_row([(i, c, choice) for i in members for c, choice in enumerate(items[i].choices)]) for members in rows]


def _size(members: Iterable[int], items: Sequence[EncodedItem]) -> int:
    """Count the nodes of the trie of several items: the distinct prefixes of what they put in."""
    sequences = sorted(choice.tokens[:-1] for i in members for choice in items[i].choices)
    nodes, before = 0, ()
    for sequence in sequences:
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(before, sequence, strict=False))
        nodes += len(sequence) - sum(1 for _ in shared)
        before = sequence
    return nodes


def _row(sequences: Iterable[tuple[int, int, EncodedChoice]]) -> Row:
    tokens: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    targets: list[Target] = []
    for item, choice_index, choice in sequences:
        path: list[int] = []
        for token in choice.tokens[:-1]:
            parent = path[-1] if path else -1
            node = children.setdefault((parent, token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(parent)
            path.append(node)
        scored = choice.n_scored
        targets.append(Target(item, choice_index, tuple(path[-scored:]), choice.tokens[-scored:], choice.is_likeliest))
    return Row(tuple(tokens), tuple(parents), tuple(targets))
