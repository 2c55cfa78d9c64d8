"""Measure how often `compare --equivalent-within X` calls a difference small that is as large as X, and its power.

    python -m benchmarks.equivalence [--runs 4000] [--seed 0]

*Wrong*: a difference of exactly X is called smaller (nominal 5 %; the smaller a true difference beyond X, the worse,
so this is the worst case). *All*: tables of 60 sublayers, one of which differs by exactly X and the others by nothing,
are called equivalent as a whole. *Found*: a difference of 0 is called smaller than X. X is four standard errors of the
difference, for accuracies of items of which as many are broken as repaired, 5 % of all.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from lowmem_layers.game.answers.equivalence import equivalence
from lowmem_layers.game.uncertainty.errors import Influence, influence_of, with_coin_flip_item

KINDS, ITEMS, SUBLAYERS, WIDTH = ("normal", "exponential", "log-normal(1)", "accuracy"), (30, 100, 232, 1000), 60, 4.0


def draw(rng: np.random.Generator, kind: str, n_items: int, shift: np.ndarray) -> Influence:
    """Draw differences of the given true size, with the long tail (if any) towards 0. Shapes: `shift` (questions,)."""
    size = (n_items, len(shift))
    if kind == "accuracy":
        drawn = rng.random(size)
        rows = np.where(drawn < 0.025 + shift, 1.0, np.where(drawn > 0.975, -1.0, 0.0))
        weights = np.repeat([[1.0, -1.0]], len(shift), axis=0)
        return with_coin_flip_item(influence_of(rows, np.arange(n_items)), weights, n_items, n_items)
    noise = {
        "normal": lambda: rng.standard_normal(size),
        "exponential": lambda: 1.0 - rng.exponential(size=size),
        "log-normal(1)": lambda: (np.exp(0.5) - rng.lognormal(size=size)) / np.sqrt((np.e - 1) * np.e),
    }[kind]()
    return influence_of(shift + noise, np.arange(n_items))


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for kind in KINDS:
        for n_items in ITEMS:
            rng = np.random.default_rng(options.seed)
            margin = WIDTH * np.sqrt((0.05 if kind == "accuracy" else 1.0) / n_items)
            edge, nothing = (
                equivalence(
                    draw(rng, kind, n_items, np.full(options.runs, shift)), margin, level=0.95, correction="holm"
                ).p
                for shift in (margin, 0.0)
            )
            n_tables = options.runs // SUBLAYERS * SUBLAYERS
            whole = np.column_stack([edge[: n_tables // SUBLAYERS], nothing[:n_tables].reshape(-1, SUBLAYERS)[:, 1:]])
            row = {"kind": kind, "items": n_items, "wrong": 100 * float((edge < 0.05).mean())}
            row |= {
                "all": 100 * float((whole < 0.05).all(axis=1).mean()),
                "found": 100 * float((nothing < 0.05).mean()),
            }
            rows.append(row)
            print(
                f"{kind}, {n_items}: wrong {row['wrong']:.1f}, all {row['all']:.1f}, found {row['found']:.1f}",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
