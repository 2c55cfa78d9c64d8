"""How many items a tile takes and how much is computed at once, from the memory that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lowmem_layers.engine.scoring import LEAST_ROWS
from lowmem_layers.engine.sweep import Sizes
from lowmem_layers.engine.trie import Row, trie_rows
from lowmem_layers.errors import BudgetError
from lowmem_layers.game.players.tree import PrefixTree
from lowmem_layers.model.shape import ModelShape
from lowmem_layers.tasks.items import EncodedItem

_CPU_STATES_BYTES = 2 << 30
_SIZES = {"cpu": Sizes(1024, 512, 64), "cuda": Sizes(16384, 2048, 2048)}
_LOGITS_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
_LEAST_CHUNK_TOKENS = {"cpu": 256, "cuda": 1024}
_CHUNK_SHARE = 4  # a chunk takes at most a quarter of the memory given; the rest is for states
_TILE_WORK = {"cpu": 4 * 10**12, "cuda": 5 * 10**15}  # multiply-adds: about half a minute, and the unit of commit


@dataclass(frozen=True)
class ItemCost:
    """What one item takes in a tile. Units: bytes of states and masks; multiply-adds."""

    n_bytes: int
    work: int


@dataclass(frozen=True)
class Widths:
    """What of a model decides what its items take.

    Shapes: `macs` N multiply-adds a token, by player. Units: `itemsize` bytes a number of the states; `widest` numbers
    of a sublayer's widest intermediate. `parallel`: attention and feed-forward of a layer act side by side.
    """

    macs: tuple[int, ...]
    hidden: int
    widest: int
    vocabulary: int
    itemsize: int
    parallel: bool = False

    def item(self, rows: Sequence[Row], tree: PrefixTree) -> ItemCost:
        """Count what the rows of one item take under all coalitions of a tree."""
        lengths = [len(row) for row in rows]
        scored = sum(len(row.scored_nodes) for row in rows)
        return self.count(sum(lengths), scored, sum(length**2 for length in lengths), tree)

    def count(self, nodes: int, scored: int, squares: int, tree: PrefixTree) -> ItemCost:
        """Count what so many tokens take, of which `scored` are; `squares` adds up the rows' squared lengths.

        The last feed-forward and the head are computed for scored tokens alone.
        """
        each = [len(step.advanced) * macs for step, macs in zip(tree.steps, self.macs, strict=True)]
        states = (2 if self.parallel else 1) * tree.n_slots * nodes * self.hidden
        head = tree.n_slots * scored * self.hidden * self.vocabulary
        work = nodes * sum(each[:-1]) + scored * each[-1] + head
        return ItemCost((states + 2 * squares) * self.itemsize, work)

    def chunk_bytes(self, sizes: Sizes) -> int:
        """Bound what one chunk's intermediates and its logits take, besides the states. Units: bytes."""
        return chunk_bytes(sizes, self.hidden, self.widest, self.vocabulary, self.itemsize)


def sizes_for(device: torch.device, vocabulary: int) -> Sizes:
    """Choose chunk sizes: a CPU's caches like about 1,000 tokens at once, a GPU many more; logits are bounded."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    sizes = _SIZES[kind]
    return replace(sizes, head_rows=max(1, min(sizes.head_rows, _LOGITS_BYTES[kind] // (4 * vocabulary))))


def sizes_within(sizes: Sizes, widths: Widths, device: torch.device, budget_bytes: int) -> Sizes:
    """Halve chunks until one takes at most a quarter of the memory given, or is as small as is sensible."""
    least = least_sizes(sizes, device)
    while _CHUNK_SHARE * widths.chunk_bytes(sizes) > budget_bytes and sizes != least:
        sizes = _halved(sizes, least)
    return sizes


def least_sizes(sizes: Sizes, device: torch.device) -> Sizes:
    """Give the smallest chunks that are computed; their logits have as few rows as a product may have."""
    least = _LEAST_CHUNK_TOKENS["cuda" if device.type == "cuda" else "cpu"]
    return replace(sizes, chunk_tokens=min(sizes.chunk_tokens, least), head_rows=min(sizes.head_rows, LEAST_ROWS))


def least_room(widths: Widths, sizes: Sizes, device: torch.device, item_bytes: int) -> int:
    """Count the least memory in which an item of so many bytes is sure to fit, beside a chunk. Units: bytes."""
    chunk = widths.chunk_bytes(least_sizes(sizes, device))
    return max(item_bytes + chunk, -(-item_bytes * _CHUNK_SHARE // (_CHUNK_SHARE - 1)))


def needed_room(shape: ModelShape, device: torch.device, itemsize: int, tree: PrefixTree, longest: int) -> int:
    """Count the least that is needed besides the weights: an item's states under all coalitions of a tree, and a chunk.

    Units: bytes; `itemsize` in bytes a number of the states, `longest` tokens of the longest item's trie.
    """
    widths = Widths(shape.macs, shape.hidden, shape.widest, shape.vocabulary, itemsize)
    item = widths.count(longest, 0, longest**2, tree)
    return least_room(widths, sizes_for(device, shape.vocabulary), device, item.n_bytes)


def longest_item(items: Sequence[EncodedItem]) -> int:
    """Count the tokens of the longest item's trie (where a model takes none, plain rows are more)."""
    bounds = sorted(((sum(len(choice.tokens) for choice in item.choices), i) for i, item in enumerate(items)))
    longest = 0
    while bounds and bounds[-1][0] > longest:  # a trie has at most the tokens of its choices
        _, index = bounds.pop()
        longest = max(longest, sum(map(len, trie_rows([items[index]], float))))
    return longest


def _halved(sizes: Sizes, least: Sizes) -> Sizes:
    return replace(
        sizes,
        chunk_tokens=max(least.chunk_tokens, sizes.chunk_tokens // 2),
        head_rows=max(least.head_rows, sizes.head_rows // 2),
    )


def tile_work_for(device: torch.device) -> int:
    """Choose how many multiply-adds make a tile."""
    return _TILE_WORK["cuda" if device.type == "cuda" else "cpu"]


def default_budget_bytes(device: torch.device) -> int:
    """Choose what the states of a tile may take when nobody says."""
    return states_bytes(None, 0, torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None)


def states_bytes(limit: int | None, used: int, free: int | None) -> int:
    """Give the states of a tile what a limit leaves; without one, 2 GiB of RAM, or 60 % of a GPU's free memory."""
    if limit is not None:
        return max(1, limit - used)
    return _CPU_STATES_BYTES if free is None else int(0.6 * free)


def chunk_bytes(sizes: Sizes, hidden: int, widest: int, vocabulary: int, itemsize: int) -> int:
    """Bound what one chunk's intermediates and its logits take, besides the states. Units: bytes.

    `widest` is the widest intermediate of a sublayer; about four of that width are alive at once, six of the hidden
    width.
    """
    layer = sizes.chunk_tokens * (4 * widest + 6 * hidden) * itemsize
    logits = vocabulary * (sizes.head_rows * itemsize + min(sizes.head_rows, sizes.softmax_rows) * 4)
    return max(layer, logits)


def plan_tiles(costs: Sequence[ItemCost], order: Sequence[int], budget_bytes: int, tile_work: int) -> list[list[int]]:
    """Cut items, in the given order, into tiles that keep within the memory and the work of a tile.

    Raises:
        BudgetError: the states of a single item do not fit.
    """
    tiles: list[list[int]] = []
    n_bytes = work = 0
    for index in order:
        cost = costs[index]
        if cost.n_bytes > budget_bytes:
            raise BudgetError(
                f"the states of item {index} take {cost.n_bytes / 2**20:,.0f} MiB; "
                f"{budget_bytes / 2**20:,.0f} MiB are given",
                "give more memory, remove fewer sublayers at once (--max-removed), or leave very long items out",
            )
        if not tiles or n_bytes + cost.n_bytes > budget_bytes or work + cost.work > tile_work:
            tiles.append([])
            n_bytes = work = 0
        tiles[-1].append(index)
        n_bytes += cost.n_bytes
        work += cost.work
    return tiles
