"""How many items a tile takes and how much is computed at once, from the memory that is given.

The plan, the check before loading and the engine all count by these functions, from the same `ModelShape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch

from lowmem_layers.engine.scoring import LEAST_ROWS
from lowmem_layers.engine.sweep import Sizes
from lowmem_layers.engine.trie import Row, lay_out
from lowmem_layers.errors import BudgetError
from lowmem_layers.game.players.tree import PrefixTree
from lowmem_layers.model.accelerators import is_gpu
from lowmem_layers.model.anatomy.forward import WIDE_ROWS
from lowmem_layers.model.shape import ModelShape
from lowmem_layers.tasks.items import EncodedItem

# On a CPU, and on a GPU of any kind:
_SIZES = (Sizes(1024, 512, 64), Sizes(16384, 2048, 2048))
_LOGITS_BYTES = (128 << 20, 512 << 20)
_LEAST_CHUNK_TOKENS = (256, 1024)
_CHUNK_SHARE = 4  # a chunk takes at most a quarter of the memory given; the rest is for states
_TILE_WORK = (10**12, 5 * 10**15)  # multiply-adds: about half a minute, and the unit of commit
STATES_A_CHUNK = 8  # at least so many states of a batch fill a chunk, where there are as many
_LEAST_REUSE = 500  # multiply-adds for each number that a tile unpacks: unpacking stays a small part of the time


@dataclass(frozen=True)
class ItemCost:
    """What one item takes in a tile.

    Units: bytes of states and masks; multiply-adds, of which `head_work` are the output embedding's; `passing_bytes`
    are taken beside a chunk while the item is computed, and by one item of a tile at a time.
    """

    n_bytes: int
    work: int
    head_work: int = 0
    passing_bytes: int = 0


@dataclass(frozen=True)
class Widths:
    """The sizes of a model that decide how much memory and work its items take.

    Shapes: `macs` N multiply-adds a token, by player. Units: `itemsize` bytes a number of the states. `kept` and
    `pair_bytes`: see `ModelShape`. `parallel`: attention and feed-forward of a layer act side by side. `ends_mixing`:
    the last sublayer mixes tokens, so that it is computed for all of them.
    """

    macs: tuple[int, ...]
    hidden: int
    kept: int
    vocabulary: int
    itemsize: int
    parallel: bool
    ends_mixing: bool = False
    pair_bytes: int = 0

    @classmethod
    def of(cls, shape: ModelShape) -> Widths:
        """Take the sizes from a model's shape: the one way to make them."""
        ends_mixing = shape.players[-1].is_attention
        return cls(
            shape.macs, shape.hidden, shape.kept, shape.vocabulary, shape.itemsize, shape.parallel, ends_mixing,
            shape.pair_bytes,
        )  # fmt: skip

    def item(self, rows: Sequence[Row], tree: PrefixTree) -> ItemCost:
        """Count what the rows of one item take under all coalitions of a tree."""
        lengths = [len(row) for row in rows]
        scored = sum(len(row.scored_nodes) for row in rows)
        return self.count(sum(lengths), scored, sum(length**2 for length in lengths), tree)

    def count(self, nodes: int, scored: int, squares: int, tree: PrefixTree) -> ItemCost:
        """Count what `nodes` tokens take, of which `scored` are scored. `squares` adds up the rows' squared lengths.

        The last feed-forward and the head are computed for scored tokens alone. In parallel layers the engine keeps
        what attention adds beside the states until the feed-forward has read them: the same numbers once more. One
        state's masks and scores are counted here, since one at least is computed at once, and so is what a row longer
        than the smallest chunk keeps; the rest is the chunk's (`states_at_once`). Where few states make a chunk, a
        batch has rows of many items, and all of them count.
        """
        each = [step.applications * macs for step, macs in zip(tree.steps, self.macs, strict=True)]
        states = (2 if self.parallel else 1) * tree.n_slots * nodes * self.hidden
        head = tree.n_slots * scored * self.hidden * self.vocabulary
        work = nodes * sum(each[:-1]) + (nodes if self.ends_mixing else scored) * each[-1] + head
        longer = max(0, isqrt(squares) - min(_LEAST_CHUNK_TOKENS)) * self.kept  # no row is longer than this root
        passing = longer * self.itemsize + squares * self.pair_bytes
        n_bytes = (states + 2 * squares) * self.itemsize
        if tree.n_slots < STATES_A_CHUNK:
            return ItemCost(n_bytes + passing, work, head)
        return ItemCost(n_bytes, work, head, passing)

    def chunk_bytes(self, sizes: Sizes) -> int:
        """Bound what one chunk's intermediates or its logits take, besides the states. Units: bytes."""
        layer = sizes.chunk_tokens * self.kept * self.itemsize
        wide = max(4, self.itemsize)  # logits of a model that computes in 16 bits are float32
        logits = self.vocabulary * (sizes.head_rows * wide + min(sizes.head_rows, sizes.softmax_rows) * 4)
        embedding = (WIDE_ROWS + sizes.head_rows) * self.hidden * 4 if self.itemsize < 4 else 0
        return max(layer, logits + embedding)

    def room_beside(self, sizes: Sizes, budget_bytes: int) -> int:
        """Count the bytes that a budget leaves for states beside one chunk.

        Raises:
            BudgetError: a chunk alone takes all of it.
        """
        needed = self.chunk_bytes(sizes)
        if needed >= budget_bytes:
            raise BudgetError(
                f"one chunk of {sizes.chunk_tokens} tokens takes {needed / 2**20:,.0f} MiB; "
                f"{budget_bytes / 2**20:,.0f} MiB are given",
                "give the engine more memory",
            )
        return budget_bytes - needed


def sizes_for(device: torch.device, vocabulary: int) -> Sizes:
    """Choose chunk sizes: a CPU's caches like about 1,000 tokens at once, a GPU many more; logits are bounded."""
    sizes = _SIZES[is_gpu(device)]
    return replace(sizes, head_rows=max(1, min(sizes.head_rows, _LOGITS_BYTES[is_gpu(device)] // (4 * vocabulary))))


def sizes_within(sizes: Sizes, widths: Widths, device: torch.device, budget_bytes: int) -> Sizes:
    """Halve chunks until one takes at most a quarter of the memory given, or is as small as is sensible."""
    while _CHUNK_SHARE * widths.chunk_bytes(sizes) > budget_bytes and sizes != (smaller := halved(sizes, device)):
        sizes = smaller
    return sizes


def least_sizes(sizes: Sizes, device: torch.device) -> Sizes:
    """Give the smallest chunks that are computed; their logits have as few rows as a product may have."""
    tokens = min(sizes.chunk_tokens, _LEAST_CHUNK_TOKENS[is_gpu(device)])
    return replace(sizes, chunk_tokens=tokens, head_rows=min(sizes.head_rows, LEAST_ROWS))


def halved(sizes: Sizes, device: torch.device) -> Sizes:
    """Halve chunks that were too large after all; the smallest that are computed stay as they are."""
    least = least_sizes(sizes, device)
    tokens, rows = max(least.chunk_tokens, sizes.chunk_tokens // 2), max(least.head_rows, sizes.head_rows // 2)
    return replace(sizes, chunk_tokens=tokens, head_rows=rows)


def least_room(widths: Widths, sizes: Sizes, device: torch.device, item_bytes: int) -> int:
    """Count how much memory is enough for an item of `item_bytes` and a chunk. Any more is enough, too.

    Units: bytes.
    """
    chunk = widths.chunk_bytes(least_sizes(sizes, device))
    return max(item_bytes + chunk, -(-item_bytes * _CHUNK_SHARE // (_CHUNK_SHARE - 1)))


def needed_room(shape: ModelShape, device: torch.device, item_bytes: int, sizes: Sizes | None = None) -> int:
    """Count the least that is needed besides the weights: the states of the largest item, and a chunk.

    Units: bytes; `sizes` are those of a run that goes on (None: they may be chosen).
    """
    widths = Widths.of(shape)
    if sizes is not None:
        return item_bytes + widths.chunk_bytes(sizes)
    return least_room(widths, sizes_for(device, shape.vocabulary), device, item_bytes)


def check_largest(
    shape: ModelShape, device: torch.device, item_bytes: int, budget_bytes: int, sizes: Sizes | None = None
) -> None:
    """Refuse before a weight is read what the engine would refuse afterwards: an item that its budget does not hold.

    Units: bytes; `sizes` are those of a run that goes on (None: they are chosen).

    Raises:
        BudgetError: the states of the largest item, or one chunk, do not fit.
    """
    widths = Widths.of(shape)
    sizes = sizes or sizes_within(sizes_for(device, shape.vocabulary), widths, device, budget_bytes)
    given = widths.room_beside(sizes, budget_bytes)
    if item_bytes > given:
        raise too_large("the longest item", item_bytes, given)


def largest_item_bytes(items: Sequence[EncodedItem], shape: ModelShape, tree: PrefixTree, deepest: int) -> int:
    """Count the bytes of the item that needs the most memory, for a model that takes tries.

    (A model that is given plain rows may need more.)

    Units: bytes; `deepest` in tokens, see `lay_out`.
    """
    widths = Widths.of(shape)
    # A layout has at most the tokens of all choices, in one row at most: few items need to be laid out.
    tokens = [sum(len(choice.tokens) for choice in item.choices if not choice.is_likeliest) for item in items]
    bounds = sorted((tile_bytes([widths.count(n, 0, n**2, tree)]), index) for index, n in enumerate(tokens))
    largest = 0
    while bounds and bounds[-1][0] > largest:
        _, index = bounds.pop()
        largest = max(largest, tile_bytes([widths.item(lay_out([items[index]], float, deepest), tree)]))
    return largest


def tile_work_for(device: torch.device, n_streamed: int) -> int:
    """Choose how many multiply-adds make a tile, which brings in and unpacks `n_streamed` numbers of the weights."""
    return max(_TILE_WORK[is_gpu(device)], _LEAST_REUSE * n_streamed)


def tile_bytes(costs: Iterable[ItemCost]) -> int:
    """Count what the items of a tile take, beside a chunk. Units: bytes."""
    n_bytes = passing = 0
    for cost in costs:
        n_bytes += cost.n_bytes
        passing = max(passing, cost.passing_bytes)
    return n_bytes + passing


def plan_tiles(costs: Sequence[ItemCost], order: Sequence[int], budget_bytes: int, tile_work: int) -> list[list[int]]:
    """Cut items, in the given order, into tiles that keep within the memory and the work of a tile.

    Raises:
        BudgetError: the states of a single item do not fit.
    """
    tiles: list[list[int]] = []
    together = ItemCost(0, 0)
    for index in order:
        cost = costs[index]
        if (alone := tile_bytes([cost])) > budget_bytes:
            raise too_large(f"item {index}", alone, budget_bytes)
        passing = max(together.passing_bytes, cost.passing_bytes)
        more = ItemCost(together.n_bytes + cost.n_bytes, together.work + cost.work, passing_bytes=passing)
        if not tiles or tile_bytes([more]) > budget_bytes or more.work > tile_work:
            tiles.append([])
            more = cost
        tiles[-1].append(index)
        together = more
    return tiles


def too_large(whose: str, n_bytes: int, given: int) -> BudgetError:
    """Say that states do not fit. Units: bytes."""
    return BudgetError(
        f"the states of {whose} take {n_bytes / 2**20:,.0f} MiB; {given / 2**20:,.0f} MiB are given",
        "give more memory, remove fewer sublayers at once (--max-removed), or leave very long items out",
    )
