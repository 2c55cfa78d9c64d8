"""Measure whether correlations without noise are right: their bias, and how often their intervals hold the truth.

    python -m benchmarks.correlations [--runs 300] [--seed 0]    normal importances and normal noise
    python -m benchmarks.correlations --record RUN               the importances and the noise of a real run

*Normal*: two runs of 60 sublayers whose true importances correlate as stated; the noise of an estimate is the stated
multiple of their spread. *Record*: a run's items are the population, its estimates the truths of run A. Run B is the
same with its sublayers exchanged, item by item, so far that Spearman's correlation is about as stated; so
importances are as unequal, and noise as skewed and uneven, as they really are. Items are drawn with replacement; they
are the same in both runs (*paired*: with them, four fifths of their noise's variance) or others. Nominal 95 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.record_population import populations
from lowmem_layers.game import kendall_tau, spearman_rho
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.disattenuation import corrected
from lowmem_layers.game.uncertainty.errors import contributions, influence_of

SUBLAYERS = 60
RHOS = (0.0, 0.3, 0.6, 0.9)
NOISES = ((100, 0.5), (100, 1.0), (400, 0.5))  # items, noise of an estimate over the spread of the truths
ITEMS = (100, 232, 1000)
Runs = tuple[np.ndarray, ...]


def normal_runs(rng: np.random.Generator, rho: float, paired: bool, n_items: int, noise: float) -> Runs:
    """Draw both truths and per-item contributions. Shapes: twice (sublayers,), twice (items, sublayers)."""
    one, own = rng.standard_normal((2, SUBLAYERS))
    other = rho * one + np.sqrt(1.0 - rho**2) * own
    first, second = noise * np.sqrt(n_items) * rng.standard_normal((2, n_items, SUBLAYERS))
    return one, other, one + first, other + (np.sqrt(0.8) * first + np.sqrt(0.2) * second if paired else second)


def record_runs(rng: np.random.Generator, rho: float, paired: bool, n_items: int, population: np.ndarray) -> Runs:
    """Do the same with the contributions of a record as population. Shapes: `population` (items, sublayers)."""
    truth = population.mean(axis=0)
    order = np.argsort(truth)
    score = np.empty(len(truth))
    score[order] = np.sort(rng.standard_normal(len(truth)))  # normal scores of A's ranks
    blurred = rho * score + np.sqrt(1.0 - rho**2) * rng.standard_normal(len(truth))
    exchanged = np.empty(len(truth), dtype=int)
    exchanged[np.argsort(blurred)] = order
    rows, others = rng.integers(0, len(population), (2, n_items))
    second = population[others][:, exchanged] - truth[exchanged]
    if paired:
        second = np.sqrt(0.8) * (population[rows][:, exchanged] - truth[exchanged]) + np.sqrt(0.2) * second
    return truth, truth[exchanged], population[rows], truth[exchanged] + second


def measured(runs: Runs, paired: bool) -> list[tuple[str, bool, float, float, float]]:
    """Correct once: for each coefficient its name, whether the truth lies inside, both errors, and the width."""
    one, other, first, second = runs
    a, b = (influence_of(per_item, np.arange(len(per_item))) for per_item in (first, second))
    pieces = (a.pieces, b.pieces)
    if not paired:
        pieces = np.concatenate([a.pieces, 0 * a.pieces]), np.concatenate([0 * b.pieces, b.pieces])
    each = corrected(a.value, b.value, *pieces, np.full(len(one), len(first) - 1.0), level=0.95)
    found = []
    for name, true, raw, value, ci in (
        ("pearson", np.corrcoef(one, other)[0, 1], np.corrcoef(a.value, b.value)[0, 1], each.pearson, each.pearson_ci),
        ("spearman", spearman_rho(one, other), spearman_rho(a.value, b.value), each.spearman, each.spearman_ci),
        ("kendall", kendall_tau(one, other), kendall_tau(a.value, b.value), each.kendall, each.kendall_ci),
    ):
        inside = ci.low - 1e-9 <= true <= ci.high + 1e-9
        found.append((name, bool(inside), float(value - true), float(raw - true), ci.high - ci.low))
    return found


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a finished run: its importances and its noise")
    parser.add_argument(
        "--value", default="log-likelihood", help="of the record: metric, probability or log-likelihood"
    )
    options = parser.parse_args()
    if options.record:
        (table,) = populations(options.record)[options.value]
        population = contributions(table, estimator_weights("neighbourhood", table.coalitions, table.players))
        settings = [(n, None, paired, rho) for n in ITEMS for paired in (True, False) for rho in RHOS[1:]]
    else:
        population = np.zeros((0, 0))
        settings = [(n, noise, paired, rho) for n, noise in NOISES for paired in (True, False) for rho in RHOS]
    rows = []
    for n_items, noise, paired, rho in settings:
        rng, found = np.random.default_rng(options.seed), []
        for _ in range(options.runs):
            if noise is None:
                runs = record_runs(rng, rho, paired, n_items, population)
            else:
                runs = normal_runs(rng, rho, paired, n_items, noise)
            found += measured(runs, paired)
        row = {"rho": rho, "paired": paired, "items": n_items, "noise": noise}
        for name in ("pearson", "spearman", "kendall"):
            mine = np.array([each[1:] for each in found if each[0] == name], dtype=float)
            means = np.nanmean(mine, axis=0)
            row |= {f"{name}_covered": round(100 * means[0], 1), f"{name}_width": round(means[3], 3)}
            row |= {f"{name}_bias": round(means[1], 3), f"{name}_bias_uncorrected": round(means[2], 3)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
