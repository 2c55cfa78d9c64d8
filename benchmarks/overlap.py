"""Measure how often intervals hold the mean over a text whose windows overlap, by single windows and by clusters.

    python -m benchmarks.overlap [--runs 4000] [--seed 0]

A window's value is the mean of what it shares with each of its neighbours and what is its own, in equal parts (q
overlaps: a moving average of q + 1 normal numbers, the strongest dependence that overlaps alone can make), or half of
that in variance, or none; or the text itself goes on in one mood (autoregression, which no overlap explains). Nominal
95 %.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from lowmem_layers.game.uncertainty.errors import influence_of
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.tasks.text import cluster_length

ITEMS, OVERLAPS = (50, 100, 300, 1000), (1, 3)
KINDS = ("independent", "half shared", "shared", "autoregressive 0.3")


def values(rng: np.random.Generator, kind: str, n_items: int, overlaps: int, runs: int) -> np.ndarray:
    """Draw the windows' values, of mean 0. Shapes: (items, runs)."""
    own = rng.standard_normal((n_items, runs))
    drawn = rng.standard_normal((n_items + overlaps, runs))
    shared = sum(drawn[k : k + n_items] for k in range(overlaps + 1)) / np.sqrt(overlaps + 1)
    if kind == "autoregressive 0.3":
        for place in range(1, n_items):
            own[place] = 0.3 * own[place - 1] + np.sqrt(1 - 0.3**2) * own[place]
    part = {"half shared": 0.5, "shared": 1.0}.get(kind, 0.0)
    return np.sqrt(part) * shared + np.sqrt(1.0 - part) * own


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for overlaps in OVERLAPS:
        for n_items in ITEMS:
            length = cluster_length(n_items, overlaps + 1, 1)
            if n_items < 2 * length:
                continue
            for kind in KINDS:
                drawn = values(np.random.default_rng(options.seed), kind, n_items, overlaps, options.runs)
                covered, width = [], []
                for codes in (np.arange(n_items), np.arange(n_items) // length):
                    ci = mean_interval(influence_of(drawn, codes), 0.95)
                    covered.append(100 * float(((ci.low <= 0) & (ci.high >= 0)).mean()))
                    width.append(float((ci.high - ci.low).mean()))
                row = {"overlaps": overlaps, "items": n_items, "cluster": length, "kind": kind}
                rows.append({**row, "single": covered[0], "clusters": covered[1], "wider": width[1] / width[0]})
                setting = f"{overlaps} overlaps, {n_items} windows, clusters of {length}, {kind}"
                wider = f"{width[1] / width[0]:.2f} times wider"
                print(f"{setting}: {covered[0]:.1f} by windows, {covered[1]:.1f} by clusters ({wider})", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
