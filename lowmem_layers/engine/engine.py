"""The engine: (model, items, coalitions) → log-likelihoods, every shared computation once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch

from lowmem_layers.engine.batches import Batch, make_batches, plain_inputs, tree_inputs
from lowmem_layers.engine.budget import (
    STATES_A_CHUNK,
    ItemCost,
    Widths,
    halved,
    plan_tiles,
    sizes_for,
    sizes_within,
    tile_bytes,
    tile_work_for,
    too_large,
)
from lowmem_layers.engine.changes import Changes
from lowmem_layers.engine.examination import Verdict, examine_engine, refuse_if_not_causal
from lowmem_layers.engine.scoring import Head
from lowmem_layers.engine.sweep import Counter, Sizes, Sweep
from lowmem_layers.engine.trie import Row, lay_out, plain_rows
from lowmem_layers.errors import EngineError, RemovalError, ShortageError
from lowmem_layers.game.players.tree import PrefixTree, Removed, prefix_tree
from lowmem_layers.model.accelerators import is_gpu, release_cached
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import has_wide_head
from lowmem_layers.model.change import REMOVE
from lowmem_layers.model.memory import available_device_bytes, is_shortage, memory_account
from lowmem_layers.model.placement import usual_states_bytes
from lowmem_layers.tasks.items import EncodedItem

Inputs = Callable[[Batch], dict[str, Any]]
Layout = Literal["auto", "trie", "rows"]


class Engine:
    """Evaluate coalitions of a model's sublayers on items, once `examine` was called.

    `budget_bytes` bounds the states, masks, intermediates and logits of a tile (not the weights); `sizes` and
    `tile_work` (multiply-adds) follow from the device where they are not given. All of them are in `describe()`: a
    run that is resumed with the same ones repeats the same numbers bit for bit. `narrowed_to` are the smaller sizes
    that such a run went on with, after memory had run out.

    `changes` say what becomes of the sublayers that a coalition names; they are removed where nothing is given.
    `layout` lays items out as token tries or as plain rows. With `auto` the examination decides; with `trie` or
    `rows` it is enough that the model was examined.
    """

    def __init__(
        self,
        model: DecoderModel,
        *,
        budget_bytes: int | None = None,
        sizes: Sizes | None = None,
        narrowed_to: Sizes | None = None,
        tile_work: int | None = None,
        layout: Layout = "auto",
        changes: Changes | None = None,
    ) -> None:
        self.model = model
        self.changes = changes or Changes.alike(len(model.players))
        free = available_device_bytes(model.device) if is_gpu(model.device) else None
        self.budget_bytes = budget_bytes or usual_states_bytes(free)
        # What suits the device, and leaves room for states.
        usual = sizes_for(model.device, model.shape.vocabulary)
        self.planned = sizes or sizes_within(usual, Widths.of(model.shape), model.device, self.budget_bytes)
        self.sizes = narrowed_to or self.planned
        self.tile_work = tile_work or tile_work_for(model.device, model.shape.n_streamed)
        self.verdict: Verdict | None = None
        self.counted_applications = 0
        self.narrowed: tuple[dict[str, str | int], ...] = ()
        self._given_layout: Layout = layout
        self._head = Head(model, self.sizes.softmax_rows)
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}
        self._trees: dict[tuple[Removed, ...], PrefixTree] = {}

    def changed(self, changes: Changes) -> Engine:
        """Give an engine that is this one but for what becomes of the sublayers that a coalition names."""
        other = copy(self)
        other.changes, other._trees = changes, {}
        return other

    @torch.inference_mode()
    def examine(self, kept: Verdict | None = None) -> Verdict:
        """Test the model, and find out whether it takes tries. A second call gives what the first one found.

        `kept` is what an earlier examination of the same weights by the same code found. It is believed; only the
        layers are looked at, since how they are driven is found there.

        Raises:
            RemovalError: the model cannot be taken apart exactly.
            UsageError: the changes mean nothing for this model.
        """
        if self.verdict is None:
            try:
                self.model.examine()
            except RemovalError:
                refuse_if_not_causal(self.model)
                raise
            self.changes.check(self.model)
            changes = self.changes if any(change != REMOVE for change in self.changes.of) else None
            self.verdict = kept or examine_engine(self.model, self._score_batches, changes)
        return self.verdict

    @property
    def layout(self) -> Layout:
        """Say how items are laid out.

        Raises:
            EngineError: no layout was given, and the engine was not examined.
        """
        if self._given_layout != "auto":
            return self._given_layout
        if self.verdict is None:
            raise EngineError("the engine was not examined: its layout is unknown", "call examine() first")
        return "trie" if self.verdict.takes_tries else "rows"

    def plan_tiles(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[list[int]]:
        """Cut items into tiles (lists of indices), in order, items of one cluster side by side.

        Raises:
            BudgetError: an item, or the least that any tile needs, does not fit the budget.
            EngineError: the engine was not examined.
        """
        first: dict[tuple[str, str], int] = {}
        for index, item in enumerate(items):
            first.setdefault((item.task, item.cluster), index)
        order = sorted(range(len(items)), key=lambda i: (first[items[i].task, items[i].cluster], i))
        given = Widths.of(self.model.shape).room_beside(self.sizes, self.budget_bytes)
        return plan_tiles(self.costs(items, coalitions), order, given, self.tile_work)

    def check_tiles(self, tiles: Sequence[Sequence[EncodedItem]], coalitions: Sequence[Removed]) -> None:
        """See that tiles of an earlier call fit the memory that is given now.

        Raises:
            BudgetError: the states of a tile, or one chunk, do not fit.
        """
        given = Widths.of(self.model.shape).room_beside(self.sizes, self.budget_bytes)
        for number, items in enumerate(tiles):
            needed = tile_bytes(self.costs(items, coalitions))
            if needed > given:
                raise too_large(f"tile {number} of this run", needed, given)

    def costs(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[ItemCost]:
        """Count what each item takes in a tile, laid out on its own."""
        widths, tree = Widths.of(self.model.shape), self._tree(coalitions)
        return [widths.item(self._rows([item]), tree) for item in items]

    def work(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> int:
        """Count the multiply-adds of a tile. (`score` saves those of beginnings that several items share.)"""
        return sum(cost.work for cost in self.costs(items, coalitions))

    @torch.inference_mode()
    def score(
        self,
        items: Sequence[EncodedItem],
        coalitions: Sequence[Removed],
        on_work: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """Score the items of one tile under every coalition.

        Shapes: per item (coalitions, choices), float64 nats. `on_work` is told the multiply-adds done since its last
        call; less than nothing where work was lost.

        Where memory runs out, the tile is computed again in chunks half as large, and so are all tiles after it;
        `narrowed` says so. Other chunks are other orders of addition: numbers may differ in their last bits.

        Raises:
            EngineError: the engine was not examined.
            ShortageError: memory runs out with the smallest chunks, too.
        """
        tell, tree = on_work or (lambda _: None), self._tree(coalitions)
        while True:
            sweep = self._sweep(tree, self._inputs, tell)
            scores = [np.full((len(coalitions), len(item.choices)), np.nan) for item in items]
            try:
                for owners, values in sweep.run(self._batches(items, tree)):
                    for column, (item, choice) in enumerate(owners):
                        scores[item][:, choice] = values[:, column].cpu().numpy()
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                tell(-sweep.counter.work)
            else:
                self.counted_applications += sweep.counter.applications
                return scores
            self._narrow(items[0])  # behind the except block, where the error no longer holds the states

    def _narrow(self, first: EncodedItem) -> None:
        """Halve the chunks, since memory ran out in the tile that begins with an item."""
        device, sizes = self.model.device, halved(self.sizes, self.model.device)
        if sizes == self.sizes:
            raise ShortageError(
                f"{device.type}: out of memory in chunks of {sizes.chunk_tokens} tokens, the smallest that there are",
                "finished tiles are kept: close other programs and run the same command again; or begin again with a "
                f"smaller --max-{'gpu' if is_gpu(device) else 'cpu'}-memory, which makes smaller tiles",
            )
        release_cached(device)
        self.sizes = sizes
        about = {"task": first.task, "first_item": first.id}
        self.narrowed += ({**about, "chunk_tokens": sizes.chunk_tokens, "head_rows": sizes.head_rows},)

    @torch.inference_mode()
    def time_layers(
        self, items: Sequence[EncodedItem], coalitions: Sequence[Removed], clock: Callable[[], float]
    ) -> tuple[int, float]:
        """Give the multiply-adds of the decoder layers alone on one tile, and the seconds they take by a clock."""
        tree = self._tree(coalitions)
        sweep = self._sweep(tree, self._inputs, lambda _: None)
        live = [sweep.start(batch) for batch in self._batches(items, tree)]
        start = clock()
        sweep.visit_layers(live)
        return sweep.counter.work, clock() - start

    def describe(self) -> dict[str, Any]:
        """Say with which sizes and in which layout this engine computes, for the run's record.

        Raises:
            EngineError: no layout was given, and the engine was not examined.
        """
        found = asdict(self.verdict) if self.verdict is not None else {}
        sizes = {**asdict(self.planned), "budget_bytes": self.budget_bytes, "tile_work": self.tile_work}
        head = {"head": "float32"} if has_wide_head(self.model.module) else {}
        narrowed = {"narrowed": list(self.narrowed)} if self.narrowed else {}
        memory = memory_account(self.model.device)
        return {"layout": self.layout, "sizes": sizes, "self_test": found, "memory": memory, **head, **narrowed}

    def _tree(self, coalitions: Sequence[Removed]) -> PrefixTree:
        key = tuple(coalitions)
        if key not in self._trees:
            self._trees[key] = prefix_tree(key, len(self.model.players), self.changes.passes)
        return self._trees[key]

    def _rows(self, items: Sequence[EncodedItem]) -> list[Row]:
        """Lay items out as tries, where the model takes them and up to the length for which that was verified."""
        if self.layout == "rows":
            return plain_rows(items)
        deepest = self.model.max_length
        if self._given_layout == "auto" and self.verdict is not None:
            deepest = self.verdict.verified_tokens
        shape = self.model.shape
        linear = 2 * sum(shape.macs) / len(shape.macs)  # of a decoder layer on average

        def cost(n_nodes: int) -> float:
            """Weigh a row: its weights' multiply-adds, and attention's, which are slower and grow with the square."""
            return n_nodes * linear + 6 * shape.hidden * n_nodes**2

        return lay_out(items, cost, deepest)

    def _batches(self, items: Sequence[EncodedItem], tree: PrefixTree) -> list[Batch]:
        return make_batches(self._rows(items), self.sizes.chunk_tokens // min(STATES_A_CHUNK, tree.n_slots))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Lay a batch out: by tree masks where its rows branch, else by the family's own."""
        if all(row.is_chain for row in batch.rows):
            return plain_inputs(batch, self.model.device)
        return tree_inputs(batch, self.model.config, self.model.dtype, self.model.device)

    def _sweep(self, tree: PrefixTree, inputs: Inputs, on_work: Callable[[int], None]) -> Sweep:
        counter = Counter(on_work)
        return Sweep(self.model, tree, self.sizes, self._head, inputs, self.changes, counter, self._indices)

    def _score_batches(
        self, batches: Sequence[Batch], inputs: Inputs, coalitions: Sequence[Removed]
    ) -> list[np.ndarray]:
        """Score batches of one item each by one sweep, for the examination. Shapes: per batch (coalitions, choices)."""
        sweep = self._sweep(self._tree(coalitions), inputs, lambda _: None)
        found = list(sweep.run(batches))
        return [values[:, np.argsort([choice for _, choice in owners])].cpu().numpy() for owners, values in found]


def ready_engine(model: DecoderModel, *, layout: Layout = "auto", **options: Any) -> Engine:
    """Make an engine that is examined: the whole of it, or the model's layers alone where a layout is given."""
    engine = Engine(model, layout=layout, **options)
    if layout == "auto":
        engine.examine()
    else:
        model.examine()
        engine.changes.check(model)
    return engine
