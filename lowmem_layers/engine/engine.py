"""The engine: (model, items, coalitions) → log-likelihoods, every shared computation once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lowmem_layers.engine.batches import Batch, make_batches, plain_inputs, tree_inputs
from lowmem_layers.engine.budget import (
    ItemCost,
    Widths,
    default_budget_bytes,
    plan_tiles,
    sizes_for,
    sizes_within,
    tile_work_for,
)
from lowmem_layers.engine.examination import Verdict, examine_engine
from lowmem_layers.engine.scoring import Head
from lowmem_layers.engine.sweep import Counter, Sizes, Sweep
from lowmem_layers.engine.trie import Row, plain_rows, trie_rows
from lowmem_layers.errors import BudgetError
from lowmem_layers.game.players.tree import PrefixTree, Removed, prefix_tree
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks.items import EncodedItem

_STATES_A_CHUNK = 8  # at least so many states of a batch fill a chunk, where there are as many

Inputs = Callable[[Batch], dict[str, Any]]


class Engine:
    """Evaluate coalitions of a model's sublayers on items.

    `budget_bytes` bounds the states, masks, intermediates and logits of a tile (not the weights); `sizes` and
    `tile_work` (multiply-adds) follow from the device where they are not given. All of them are in `describe()`: a
    run that is resumed with the same ones repeats the same numbers bit for bit.

    Raises:
        RemovalError: the model can't be taken apart exactly (found at first use).
    """

    def __init__(
        self,
        model: DecoderModel,
        *,
        budget_bytes: int | None = None,
        sizes: Sizes | None = None,
        tile_work: int | None = None,
        layout: str = "auto",
    ) -> None:
        self.model = model
        self._sizes = sizes or sizes_for(model.device, model.module.get_output_embeddings().weight.shape[0])
        self._sizes_are_given = sizes is not None
        self.budget_bytes = budget_bytes or default_budget_bytes(model.device)
        self.tile_work = tile_work or tile_work_for(model.device)
        self.counted_applications = 0
        self._layout = layout
        self._head = Head(model, self._sizes.softmax_rows)
        self._trees: dict[tuple[Removed, ...], PrefixTree] = {}

    @cached_property
    def sizes(self) -> Sizes:
        """Say how much is computed at once: what was given, else what suits the device and leaves room for states."""
        if self._sizes_are_given:
            return self._sizes
        return sizes_within(self._sizes, self._widths, self.model.device, self.budget_bytes)

    @cached_property
    @torch.inference_mode()
    def verdict(self) -> Verdict:
        """Test the model, at first use."""
        return examine_engine(self.model, self._score_batch)

    @property
    def layout(self) -> str:
        """Say how items are laid out: `trie` or `rows`."""
        if self._layout != "auto":
            return self._layout
        return "trie" if self.verdict.takes_tries else "rows"

    def plan_tiles(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> list[list[int]]:
        """Cut items into tiles (lists of indices), in order, items of one cluster side by side.

        Raises:
            BudgetError: an item, or the least that any tile needs, does not fit the budget.
        """
        tree = self._tree(coalitions)
        first: dict[tuple[str, str], int] = {}
        for index, item in enumerate(items):
            first.setdefault((item.task, item.cluster), index)
        order = sorted(range(len(items)), key=lambda i: (first[items[i].task, items[i].cluster], i))
        costs = [self._cost(self._rows([item]), tree) for item in items]
        return plan_tiles(costs, order, self.budget_bytes - self._chunk_bytes(), self.tile_work)

    def work(self, items: Sequence[EncodedItem], coalitions: Sequence[Removed]) -> int:
        """Count the multiply-adds of a tile: what `on_work` adds up to, but for beginnings that items share."""
        return sum(self._cost(self._rows([item]), self._tree(coalitions)).work for item in items)

    @torch.inference_mode()
    def score(
        self,
        items: Sequence[EncodedItem],
        coalitions: Sequence[Removed],
        on_work: Callable[[int], None] | None = None,
    ) -> list[np.ndarray]:
        """Score the items of one tile under every coalition.

        Shapes: per item (coalitions, choices), float64 nats. `on_work` is told the multiply-adds done since its last
        call.
        """
        tree = self._tree(coalitions)
        batches = self._batches(items, tree)
        sweep = self._sweep(tree, self._inputs, on_work or (lambda _: None))
        scores = [np.full((len(coalitions), len(item.choices)), np.nan) for item in items]
        for owners, values in sweep.run(batches):
            for column, (item, choice) in enumerate(owners):
                scores[item][:, choice] = values[:, column].cpu().numpy()
        self.counted_applications += sweep.counter.applications
        return scores

    @torch.inference_mode()
    def time_layers(
        self, items: Sequence[EncodedItem], coalitions: Sequence[Removed], clock: Callable[[], float]
    ) -> tuple[int, float]:
        """Give the multiply-adds of the decoder layers alone on one tile, and the seconds they take by a clock."""
        tree = self._tree(coalitions)
        sweep = self._sweep(tree, self._inputs, lambda _: None)
        live = sweep.start(self._batches(items, tree))
        start = clock()
        sweep.visit_layers(live)
        return sweep.counter.work, clock() - start

    def describe(self) -> dict[str, Any]:
        """Say with which sizes and in which layout this engine computes, for the run's record."""
        found = asdict(self.verdict) if self._layout == "auto" else {}
        sizes = {**asdict(self.sizes), "budget_bytes": self.budget_bytes, "tile_work": self.tile_work}
        return {"layout": self.layout, "sizes": sizes, "self_test": found}

    def _tree(self, coalitions: Sequence[Removed]) -> PrefixTree:
        key = tuple(coalitions)
        if key not in self._trees:
            self._trees[key] = prefix_tree(key, len(self.model.players))
        return self._trees[key]

    def _rows(self, items: Sequence[EncodedItem]) -> list[Row]:
        """Lay items out: as tries where the model takes them and up to the length for which that was verified."""
        if self.layout != "trie":
            return plain_rows(items)
        deepest = self.verdict.verified_tokens if self._layout == "auto" else self.model.max_length
        deep = {i for i, item in enumerate(items) if max(len(c.tokens) for c in item.choices) - 1 > deepest}
        shallow = [i for i in range(len(items)) if i not in deep]
        return trie_rows(items, self._row_cost, shallow) + plain_rows(items, sorted(deep))

    def _batches(self, items: Sequence[EncodedItem], tree: PrefixTree) -> list[Batch]:
        return make_batches(self._rows(items), self.sizes.chunk_tokens // min(_STATES_A_CHUNK, tree.n_slots))

    def _row_cost(self, n_nodes: int) -> float:
        """Weigh a row of T nodes: its weights' multiply-adds, and attention's, which are slower and grow with T²."""
        layers = self.model.programs
        linear = sum(sum(program.macs.values()) for program in layers) / len(layers)
        return n_nodes * linear + 6 * self._hidden_size * n_nodes**2

    @property
    def _hidden_size(self) -> int:
        return self.model.config.hidden_size

    @cached_property
    def _widths(self) -> Widths:
        layers = self.model.programs
        return Widths(
            macs=tuple(program.macs[kind] for program in layers for kind in ("attn", "ffn")),
            hidden=self._hidden_size,
            widest=max(program.widest for program in layers),
            vocabulary=self._head.vocabulary,
            itemsize=self.model.dtype.itemsize,
            parallel=self.model.parallel,
        )

    def _cost(self, rows: Sequence[Row], tree: PrefixTree) -> ItemCost:
        return self._widths.item(rows, tree)

    def _chunk_bytes(self) -> int:
        needed = self._widths.chunk_bytes(self.sizes)
        if needed >= self.budget_bytes:
            raise BudgetError(
                f"one chunk of {self.sizes.chunk_tokens} tokens takes {needed / 2**20:,.0f} MiB; "
                f"{self.budget_bytes / 2**20:,.0f} MiB are given",
                "give the engine more memory",
            )
        return needed

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Lay a batch out: by tree masks where its rows branch, else by the family's own."""
        if all(row.is_chain for row in batch.rows):
            return plain_inputs(batch, self.model.device)
        return tree_inputs(batch, self.model.config, self.model.dtype, self.model.device)

    def _sweep(self, tree: PrefixTree, inputs: Inputs, on_work: Callable[[int], None]) -> Sweep:
        return Sweep(self.model, tree, self.sizes, self._head, inputs, Counter(on_work))

    def _score_batch(self, batch: Batch, inputs: Inputs, coalitions: Sequence[Removed]) -> np.ndarray:
        """Score the one item of a batch, for the self-test. Shapes: (coalitions, choices)."""
        sweep = self._sweep(self._tree(coalitions), inputs, lambda _: None)
        owners, values = next(iter(list(sweep.run([batch]))))
        return values[:, np.argsort([choice for _, choice in owners])].cpu().numpy()
