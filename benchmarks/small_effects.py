"""Measure how short the intervals are for a small effect on the accuracy of a model that is always right.

    python -m benchmarks.small_effects [--runs 400]

One of twelve sublayers matters: an item that it breaks is broken in every window that holds it, and no other item ever
is. Its neighbourhood estimate and its ablation drop are then both the share of items that it breaks. Independent
errors of coalitions, which the intervals of accuracies allow for, do not model that.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from lowmem_layers.game import ValueTable
from lowmem_layers.game.answers.importance import estimate
from lowmem_layers.game.players.coalitions import windows

PLAYERS, MATTERS = 12, 5
ITEMS, EFFECTS = (100, 232, 1000), (0.01, 0.02, 0.03, 0.1)


def covered(n_items: int, effect: float, runs: int) -> dict[str, float]:
    """Give the shares of runs, in per cent, whose 95 % intervals hold the truth."""
    coalitions = tuple(windows(PLAYERS, 4))
    holds = np.array([MATTERS in removed for removed in coalitions])  # (coalitions,)
    hits = {"estimate": 0, "drop": 0}
    for seed in range(runs):
        broken = np.random.default_rng(seed).random(n_items) < effect  # (items,)
        values = 1.0 - np.outer(broken, holds)  # (items, coalitions)
        found = estimate(ValueTable(tuple(f"p{i}" for i in range(PLAYERS)), coalitions, values))
        for name, ci in (("estimate", found.ci), ("drop", found.ablation_ci)):
            hits[name] += bool(ci.low[MATTERS] <= effect <= ci.high[MATTERS])
    return {name: 100 * n / runs for name, n in hits.items()}


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    rows = [{"items": n, "effect": effect, **covered(n, effect, runs)} for n in ITEMS for effect in EFFECTS]
    for row in rows:
        print(f"{row['items']:>5} items, effect {row['effect']:.0%}: {row['estimate']:.1f} %, {row['drop']:.1f} %")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
