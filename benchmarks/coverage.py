"""Measure how often the intervals hold the truth: values, drops, shares, ranks, top-k, interactions, differences.

    python -m benchmarks.coverage [--runs 400] [--quick]            games with known values
    python -m benchmarks.coverage --record RUN [--other RUN]        a finished run's items as the population

A population of items is built once, so every true value is known. Samples of it (of whole clusters, if items are
clustered) go through the package's own estimates. Removing a sublayer lowers an item's margin by the sublayer's effect
times the item's own sensitivity. An accuracy is the sign of the margin; a log-likelihood is the margin itself, with
skewed (log-normal) and heavy-tailed (t with 4 degrees of freedom) noise. A third of the sublayers have no effect. With
`--record` the items are those of a real run, drawn with replacement; `--other` is a run of the same items under another
quantisation.

Nominal coverage is 95 %; ± is the standard error of the simulation. Shares are counted for sublayers whose true share
is at least 1 %: for the others, half of the interval's error would lie below 0, where it cannot happen. "seen" counts
only the questions for which at least five items of a sample are expected to change; fewer cannot be told apart from
nothing. Accuracies that change on fewer items are coarse counts: an interval that holds the truth too rarely for one
sublayer holds it too often for another, and these intervals hold it too often rather than too rarely. The intervals of
ranks and tops are bounds in whole numbers, not approximations.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.record_population import populations
from lowmem_layers.game import ValueTable, compare, estimate, interactions, players_of, ranks, windows
from lowmem_layers.game.answers.interactions import interaction_pairs, interaction_weights
from lowmem_layers.game.estimators.weights import estimator_weights, largest_window
from lowmem_layers.game.uncertainty.errors import contributions
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import IntArray

MARGINS = 40_000  # items in a population


@dataclass(frozen=True)
class Population:
    """All items of a game, with where each cluster starts and its size."""

    table: ValueTable
    other: ValueTable  # the same items under a slightly different model
    starts: IntArray
    sizes: IntArray

    def sample(self, n_items: int, rng: np.random.Generator) -> tuple[ValueTable, ValueTable]:
        """Draw clusters until about `n_items` items are there; both models get the same ones."""
        count = max(2, round(n_items / self.sizes.mean()))
        drawn: list[int] = rng.integers(0, len(self.starts), count).tolist()
        rows = np.concatenate([np.arange(self.starts[g], self.starts[g] + self.sizes[g]) for g in drawn])
        codes = np.repeat(np.arange(count), self.sizes[drawn])
        names = tuple(str(i) for i in range(len(rows)))
        first, second = (replace(t.take_items(rows), clusters=codes, items=names) for t in (self.table, self.other))
        return first, second


def build(kind: str, n_layers: int, clustered: bool, seed: int = 0) -> Population:
    """Build a population of items for all windows of up to 4 sublayers."""
    rng = np.random.default_rng(seed)
    players = tuple(p.name for p in players_of(("ffn",) * n_layers))
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


def of_record(table: ValueTable, other: ValueTable) -> Population:
    """Take a run's items as the population; the other run's are matched by name."""
    row = {name: place for place, name in enumerate(other.items or ())}
    both = [place for place, name in enumerate(table.items or ()) if name in row]
    second = other.take_items([row[(table.items or ())[place]] for place in both])
    ones = np.ones(len(both), dtype=int)
    return Population(table.take_items(both), second, np.arange(len(both)), ones)


def inside(ci: Interval, truth: np.ndarray | float) -> np.ndarray:
    """Tell which intervals hold the truth."""
    return (ci.low <= truth + 1e-12) & (truth <= ci.high + 1e-12)


def seen(population: Population, n_items: int) -> dict[str, np.ndarray]:
    """Tell for which questions at least five items of a sample are expected to change."""
    table, other = population.table, population.other
    pairs = interaction_pairs(table.n_players, largest_window(table.coalitions, table.n_players))
    weights = {
        "value": estimator_weights("neighbourhood", table.coalitions, table.players),
        "drop": estimator_weights("ablation", table.coalitions, table.players),
        "interaction": interaction_weights(pairs, table.coalitions, table.players),
    }
    changes = {name: contributions(table, each) for name, each in weights.items()}
    changes["difference"] = changes["value"] - contributions(other, weights["value"])
    return {name: (each != 0).mean(axis=0) * n_items >= 5 for name, each in changes.items()}


def measure(population: Population, n_items: int, runs: int, seed: int) -> dict[str, float]:
    """Count, over many samples, how often each kind of interval holds the population's truth."""
    rng = np.random.default_rng(seed)
    truth, pairs = estimate(population.table), interactions(population.table)
    changed = compare(population.table, population.other)
    counted, shown = truth.share >= 0.01, seen(population, n_items)
    true_rank = ranks(truth.value)
    hits: dict[str, list[float]] = {}

    def note(name: str, value: np.ndarray | float) -> None:
        hits.setdefault(name, []).append(float(np.mean(value)))
        if name in shown and not shown[name].all() and shown[name].any():
            hits.setdefault(f"{name} (seen)", []).append(float(np.mean(np.asarray(value)[shown[name]])))

    for run in range(runs):
        first, second = population.sample(n_items, rng)
        found = estimate(first, seed=run)
        note("value", inside(found.ci, truth.value))
        note("drop", inside(found.ablation_ci, truth.ablation_drop))
        note("share", inside(found.share_ci, truth.share)[counted])
        note("rank", inside(found.rank_ci, true_rank))
        note("rank_width", found.rank_ci.high - found.rank_ci.low)
        stated_in, stated_out = found.top_k_decision == 1, found.top_k_decision == -1
        note("top3_wrong", bool((stated_in & (true_rank > 3)).any() or (stated_out & (true_rank <= 3)).any()))
        between = interactions(first)
        note("interaction", inside(between.ci, pairs.value))
        difference = compare(first, second, seed=run)
        note("difference", inside(difference.ci, changed.difference))
        both, agreed = difference.agreement, changed.agreement
        note("kendall", inside(both.kendall_ci, agreed.kendall))
        note("spearman", inside(both.spearman_ci, agreed.spearman))
        note("overlap", inside(both.overlap_ci, agreed.overlap))
    return summary(hits, runs)


def summary(hits: dict[str, list[float]], runs: int) -> dict[str, float]:
    """Average over samples, and add the largest standard error among the coverages that are nominally 95 %."""
    nominal = ("value", "drop", "share", "interaction", "difference")
    errors = [np.nanstd(each) / np.sqrt(runs) for name, each in hits.items() if name.split(" ")[0] in nominal]
    return {name: round(float(np.nanmean(each)), 3) for name, each in hits.items()} | {
        "±": round(float(max(errors)), 4)
    }


def settings(options: argparse.Namespace) -> list[tuple[dict[str, object], Population, int, int]]:
    """List what is measured: a description, a population, items a sample, samples."""
    if options.record:
        mine, theirs = populations(options.record), populations(options.other or options.record)
        return [
            (
                {"players": first.n_players, "kind": f"{first.task} {kind}", "items": n},
                of_record(first, second),
                n,
                options.runs,
            )
            for kind in mine
            for first, second in zip(mine[kind], theirs[kind], strict=True)
            for n in (30, 100, 300)
        ]
    found: list[tuple[dict[str, object], Population, int, int]] = []
    for n_layers in (6,) if options.quick else (6, 30):
        for kind in ("accuracy", "log-likelihood"):
            for clustered in (False, True):
                population = build(kind, n_layers, clustered)
                runs = options.runs if n_layers == 6 else max(options.runs // 4, 20)
                for n in (30, 300) if options.quick or n_layers > 6 else (30, 100, 300, 1000):
                    about = {"players": 2 * n_layers, "kind": kind, "clustered": clustered, "items": n}
                    found.append((about, population, n, runs))
    return found


def main() -> None:
    """Print a line a setting, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="fewer settings and runs")
    parser.add_argument("--record", type=Path, help="a finished run: its items are the population")
    parser.add_argument("--other", type=Path, help="a run of the same items under another quantisation")
    options = parser.parse_args()
    options.runs = 40 if options.quick else options.runs
    rows, started = [], time.perf_counter()
    for about, population, n_items, runs in settings(options):
        found = measure(population, n_items, runs, seed=1)
        rows.append({**about, "runs": runs, **found})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    used = {"seconds": round(time.perf_counter() - started, 1), "numpy": np.__version__}
    print(json.dumps({"rows": rows, **used, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
