"""Measure how often the intervals hold the truth: values, drops, shares, ranks, top-k, interactions, differences.

Usage: python benchmarks/coverage.py [--runs 200] [--quick]

A population of items is built once, so that every true value is known; samples of it (whole clusters, where items are
clustered) go through the package's own estimates. Removing a sublayer lowers an item's margin by the sublayer's effect
times the item's own sensitivity; accuracies are the margin's sign, log-likelihoods the margin itself with skewed
(log-normal) and heavy-tailed (t with 4 degrees of freedom) noise. A third of the sublayers do nothing.
Nominal coverage is 95 %. Shares are counted over sublayers whose true share is at least 1 %; of the others half of the
interval's error lies beyond 0 and cannot happen. Ranks and tops are whole numbers and bounded, not approximated.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lowmem_layers.game import ValueTable, compare, estimate, interactions, players_of, ranks, windows

MARGINS = 40_000  # items in a population


@dataclass(frozen=True)
class Population:
    """All items of a game, with where each cluster starts and its size."""

    table: ValueTable
    other: ValueTable  # the same items under a slightly different model
    starts: np.ndarray
    sizes: np.ndarray

    def sample(self, n_items: int, rng: np.random.Generator) -> tuple[ValueTable, ValueTable]:
        """Draw clusters until about `n_items` items are there; both models get the same ones."""
        count = max(2, round(n_items / self.sizes.mean()))
        drawn = rng.integers(0, len(self.starts), count)
        rows = np.concatenate([np.arange(self.starts[g], self.starts[g] + self.sizes[g]) for g in drawn])
        codes = np.repeat(np.arange(count), self.sizes[drawn])
        names = tuple(str(i) for i in range(len(rows)))
        first, second = (replace(t.take_items(rows), clusters=codes, items=names) for t in (self.table, self.other))
        return first, second


def build(kind: str, n_layers: int, clustered: bool, seed: int = 0) -> Population:
    """Build a population of items for all windows of up to 4 sublayers."""
    rng = np.random.default_rng(seed)
    players = tuple(p.name for p in players_of(["ffn"] * n_layers))
    n = len(players)
    coalitions = tuple(windows(n, 4))
    effects = np.sort(rng.gamma(0.4, 1.0, n))[::-1]
    effects *= 3.0 / effects.max()
    effects[rng.permutation(np.arange(3, n))[: n // 3]] = 0.0
    sizes = rng.integers(1, 7, MARGINS // 4) if clustered else np.ones(MARGINS, dtype=int)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    within = 0.3 if clustered else 1.0

    def draw(columns: int) -> np.ndarray:
        shared = rng.normal(size=(len(sizes), columns))[codes]
        return np.sqrt(1.0 - within) * shared + np.sqrt(within) * rng.normal(size=(len(codes), columns))

    margin = 0.8 + draw(1)[:, 0]
    losses = 0.8 * effects * np.exp(0.7 * draw(n)) + 0.15 * draw(n)
    if kind == "log-likelihood":
        losses += 0.1 * rng.standard_t(4, losses.shape)
    tables = []
    for scale in (1.0, 0.9):
        values = np.empty((len(codes), len(coalitions)))
        for c, removed in enumerate(coalitions):
            lost = scale * losses[:, list(removed)].sum(axis=1)
            lost = lost - 0.2 * len(removed) * np.tanh(lost) * (len(removed) > 1)
            noise = 0.2 * rng.normal(size=len(codes)) * (scale != 1.0)
            values[:, c] = margin - lost + noise > 0 if kind == "accuracy" else 4.0 * (margin - lost + noise)
        tables.append(ValueTable(players, coalitions, values))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return Population(tables[0], tables[1], starts, sizes)


def inside(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Tell which intervals hold the truth."""
    return (low <= truth + 1e-12) & (truth <= high + 1e-12)


def measure(population: Population, n_items: int, runs: int, seed: int) -> dict[str, float]:
    """Count, over many samples, how often each kind of interval holds the population's truth."""
    rng = np.random.default_rng(seed)
    truth, pairs = estimate(population.table), interactions(population.table)
    changed = compare(population.table, population.other)
    counted = truth.share >= 0.01
    true_rank = ranks(truth.value)
    hits: dict[str, list[float]] = {}

    def note(name: str, value: np.ndarray | float) -> None:
        hits.setdefault(name, []).append(float(np.mean(value)))

    for run in range(runs):
        first, second = population.sample(n_items, rng)
        found = estimate(first, seed=run)
        note("value", inside(found.ci_low, found.ci_high, truth.value))
        note("drop", inside(found.ablation_ci_low, found.ablation_ci_high, truth.ablation_drop))
        note("share", inside(found.share_ci_low, found.share_ci_high, truth.share)[counted])
        note("rank", inside(found.rank_ci_low, found.rank_ci_high, true_rank))
        note("rank_width", found.rank_ci_high - found.rank_ci_low)
        stated_in, stated_out = found.top_k_decision == 1, found.top_k_decision == -1
        note("top3_wrong", bool((stated_in & (true_rank > 3)).any() or (stated_out & (true_rank <= 3)).any()))
        between = interactions(first)
        note("interaction", inside(between.ci_low, between.ci_high, pairs.value))
        difference = compare(first, second, seed=run)
        note("difference", inside(difference.ci_low, difference.ci_high, changed.difference))
        both = difference.agreement
        agreed = changed.agreement
        note("kendall", both.kendall_low <= agreed.kendall <= both.kendall_high)
        note("spearman", both.spearman_low <= agreed.spearman <= both.spearman_high)
        note("resolved", both.resolved)
    return {name: round(float(np.mean(values)), 3) for name, values in hits.items()}


def main() -> None:
    """Print the table, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="fewer settings and runs")
    options = parser.parse_args()
    runs = 40 if options.quick else options.runs
    show: Callable[[list[str]], None] = lambda cells: print("".join(f"{cell:>13}" for cell in cells), flush=True)  # noqa: E731
    rows, started = [], time.perf_counter()
    for n_layers in (6,) if options.quick else (6, 30):
        for kind in ("accuracy", "log-likelihood"):
            for clustered in (False, True):
                population = build(kind, n_layers, clustered)
                for n_items in (30, 300) if options.quick or n_layers > 6 else (30, 100, 300, 1000):
                    found = measure(population, n_items, runs if n_layers == 6 else max(runs // 4, 20), seed=1)
                    row = {"players": 2 * n_layers, "kind": kind, "clustered": clustered, "items": n_items, **found}
                    if not rows:
                        show(list(row))
                    rows.append(row)
                    show([str(cell)[:12] for cell in row.values()])
    used = {"runs": runs, "seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps({"rows": rows, **used, "numpy": np.__version__, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
