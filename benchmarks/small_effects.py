"""Measure how often the intervals of accuracies hold a small effect: of estimates, drops and paired differences.

    python -m benchmarks.small_effects [--runs 4000] [--seed 0]

One sublayer matters, in windows of up to four. An item is right with the base accuracy. The sublayer breaks a share of
the items, so that the effect is as stated; below a base accuracy of 1 it also breaks and repairs as many others as a
tenth of the wrong ones. *Whole*: an item is broken (or repaired) in all windows that hold the sublayer. *Part*: half
of them are, the others in every window by the toss of a coin. A paired difference is that of run A, as above, and run
B, in which the sublayer breaks and repairs other items, but as many of each. Nominal 95 %; nothing is left out.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.special import stdtrit

from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.uncertainty.errors import Influence, influence_of, with_coin_flip_item
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.game.uncertainty.score import answers_apart

PLAYERS, MATTERS, WINDOWS = 12, 5, 7  # an inner player's estimate has seven terms
BASES, ITEMS, EFFECTS = (0.6, 0.8, 1.0), (100, 232, 1000), (0.003, 0.01, 0.02, 0.03, 0.1)
NAMES = tuple(f"p{i}" for i in range(PLAYERS))
COALITIONS = tuple(windows(PLAYERS, 4))


def changes(rng: np.random.Generator, n_items: int, runs: int, base: float, effect: float, part: float) -> np.ndarray:
    """Draw what each item loses in each of the sublayer's windows: 1, 0 or −1. Shapes: (windows, items, runs)."""
    both_ways = 0.1 * (1.0 - base)
    drawn = rng.random((n_items, runs))
    sign = np.where(drawn < both_ways, -1.0, np.where(drawn < 2 * both_ways + effect, 1.0, 0.0))
    whole = (rng.random((n_items, runs)) >= part) | (rng.random((WINDOWS, n_items, runs)) < 0.5)
    return sign * whole


def influence(rows: np.ndarray, estimator: Estimator) -> Influence:
    """Go through the package's own way from contributions to an estimate. Shapes: `rows` (items, runs)."""
    weights = np.repeat(estimator_weights(estimator, COALITIONS, NAMES)[[MATTERS]], rows.shape[1], axis=0)
    return with_coin_flip_item(influence_of(rows, np.arange(len(rows))), weights, len(rows), len(rows))


def measured(estimate: Influence, truth: float) -> dict[str, float]:
    """Give coverage and mean width of the intervals, and of Student's with the coin-flip item, in per cent."""
    ci = mean_interval(estimate, 0.95)
    half = stdtrit(estimate.dof, 0.975) * estimate.standard_error
    return {
        "covered": 100 * float(np.mean((ci.low <= truth) & (truth <= ci.high))),
        "before": 100 * float(np.mean(np.abs(estimate.value - truth) <= half)),
        "width": 100 * float(np.mean(ci.high - ci.low)),
        "width_before": 200 * float(np.mean(half)),
    }


def setting(n_items: int, base: float, effect: float, part: float, runs: int, seed: int) -> dict[str, dict[str, float]]:
    """Measure one setting."""
    rng = np.random.default_rng(seed)
    kept = 1.0 - 0.5 * part  # the mean over windows of what is broken
    a = changes(rng, n_items, runs, base, effect, part)
    b = changes(rng, n_items, runs, base, 0.0, part)
    first, second = influence(a.mean(axis=0), "neighbourhood"), influence(b.mean(axis=0), "neighbourhood")
    flips = np.sqrt(0.5) * (first.pieces[n_items:]), np.sqrt(0.5) * second.pieces[n_items:]
    items = first.pieces[:n_items] - second.pieces[:n_items]
    pieces = np.concatenate([items, flips[0], -flips[1]])
    assert first.answers is not None
    assert second.answers is not None
    apart = Influence(
        first.value - second.value, pieces, first.dof, True, answers=answers_apart(first.answers, second.answers)
    )
    return {
        "estimate": measured(first, effect * kept),
        "drop": measured(influence(a[0], "ablation"), effect * kept),
        "difference": measured(apart, effect * kept),
    }


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for part in (0.0, 0.5):
        for base in BASES:
            for n_items in ITEMS:
                for effect in EFFECTS:
                    runs = max(options.runs * 100 // n_items, 400)
                    found = setting(n_items, base, effect, part, runs, options.seed)
                    rows.append({"part": part, "base": base, "items": n_items, "effect": effect, **found})
                    cells = "  ".join(
                        f"{name} {each['covered']:.1f} ({each['before']:.1f}) "
                        f"width {each['width']:.2f} ({each['width_before']:.2f})"
                        for name, each in found.items()
                    )
                    print(f"part {part} base {base} items {n_items} effect {effect:.1%}: {cells}", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
