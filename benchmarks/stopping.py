"""Measure stopping early: how often a statement made at any time of looking is wrong, and how many items it takes.

Usage: python benchmarks/stopping.py [--runs 200] [--items 400]

Every game is a population of items with known values; items arrive one at a time in random order and the rule looks
after every `step` of them (it refuses to state anything before the 30th). "tie" has no gap between the third and the
fourth sublayer, a "duel" none between its two: every statement about them is wrong.
"""

from __future__ import annotations

import argparse
import json
import platform

import numpy as np

from lowmem_layers.game import ValueTable, single_removals
from lowmem_layers.game.stopping import decide

EFFECTS = {
    "clear": [0.45, 0.35, 0.30, 0.08, 0.05, 0.03, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "close": [0.45, 0.35, 0.20, 0.15, 0.05, 0.03, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "tie": [0.45, 0.35, 0.15, 0.15, 0.15, 0.15, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "all tied": [0.05] * 12,
    "duel": [0.3, 0.3],
    "duel, rare": [0.03, 0.03],
    "rare": [0.06, 0.06, 0.06, 0.06, 0.004, 0.004, 0.004, 0.004, 0.0, 0.0, 0.0, 0.0],
}


def draw(game: str, kind: str, n_items: int, rng: np.random.Generator) -> ValueTable:
    """Draw items of a game: accuracies that removals break (or, more rarely, repair), or skewed heavy-tailed drops.

    The true drop of every sublayer is its effect (times 0.7 for accuracies: the share of items answered right).
    """
    effects = np.array(EFFECTS[game])
    if kind == "accuracy":
        right = rng.random((n_items, 1)) < 0.7
        repaired = ~right & (rng.random((n_items, len(effects))) < 0.02)
        broken = right & (rng.random((n_items, len(effects))) < effects + 0.02 * 0.3 / 0.7)
        values = np.concatenate([right, (right & ~broken) | repaired], axis=1).astype(float)
    else:
        skewed = rng.gamma(0.5, 2.0, (n_items, len(effects)))
        if kind == "one skewed":  # the hardest case for a Gaussian rule: skewed against symmetric, the same mean
            skewed[:, 1:] = 1.0
        values = np.concatenate([np.zeros((n_items, 1)), -effects * skewed], axis=1)
        values[:, 1:] += 0.1 * rng.standard_t(4, (n_items, len(effects)))
    coalitions = tuple(single_removals(len(effects)))
    return ValueTable(tuple(f"player.{p}" for p in range(len(effects))), coalitions, values)


def top_k(game: str) -> int:
    """Ask for the top 3, and for the better one of two."""
    return 1 if len(EFFECTS[game]) == 2 else 3


def is_wrong(text: str, game: str) -> bool:
    """Judge a statement about the top sublayers: wrong where one inside is not truly above all outside."""
    effects = np.array(EFFECTS[game])
    named = [int(name.split(".")[1]) for name in text.split(" are ")[1].split(" (")[0].split(", ")]
    outside = [p for p in range(len(effects)) if p not in named]
    return bool(effects[named].min() <= effects[outside].max())


def measure(game: str, kind: str, runs: int, n_items: int, step: int, seed: int = 0) -> dict[str, object]:
    """Run a game many times, looking after every `step` items and stopping at the first statement."""
    rng = np.random.default_rng(seed)
    wrong, needed = 0, []
    for _ in range(runs):
        table = draw(game, kind, n_items, rng)
        for n in range(step, n_items + 1, step):
            decision = decide(table.take_items(range(n)), f"top={top_k(game)}")
            if decision.holds:
                wrong += is_wrong(decision.text, game)
                needed.append(n)
                break
    median = float(np.median(needed)) if needed else None
    return {"game": game, "kind": kind, "runs": runs, "stated": len(needed), "wrong": wrong, "median_items": median}


def main() -> None:
    """Print the table, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--step", type=int, default=5)
    options = parser.parse_args()
    rows = []
    print(f"{'game':<10}{'kind':<16}{'runs':>6}{'stated':>8}{'wrong':>7}{'median items':>14}")
    for game in EFFECTS:
        for kind in ("accuracy", "log-likelihood", "one skewed"):
            if kind == "one skewed" and top_k(game) == 3:
                continue
            row = measure(game, kind, options.runs, options.items, options.step)
            rows.append(row)
            print(f"{game:<10}{kind:<16}{row['runs']:>6}{row['stated']:>8}{row['wrong']:>7}{row['median_items']!s:>14}")
    print(
        json.dumps(
            {"rows": rows, "options": vars(options), "numpy": np.__version__, "python": platform.python_version()}
        )
    )


if __name__ == "__main__":
    main()
