"""Measure early stops where a few items lose much: how often is a statement wrong that no look should have made?

    python -m benchmarks.rare_losses [--runs 400] [--items 1000]

Two sublayers with the same true drop, so that any order stated by `top=1` is wrong. One loses a little on every item
(within 30 %), the other loses much on a few items (0.5, 1, 2, 3 %) and nothing on the others: until such an item comes,
the first seems to be surely above. A look every 10 items, from 30 clusters on. Kinds of values:

    probability            between 0 and 1, a rare loss is 0.9
    the same, clustered    items in clusters of 1 to 5, a cluster loses as a whole
    accuracy               0 or 1; the one breaks so many single items, the other whole clusters of 5
    log-likelihood         nats, a rare loss is 9; nothing can be valid here, and statements say what they assume

"bets" is the rule for values within 0 and 1, "t" the t-test e-process, the rule for all others. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

from lowmem_layers.game import ValueTable, decide, single_removals
from lowmem_layers.game.values.table import Planned

RATES = (0.005, 0.01, 0.02, 0.03)
KINDS = ("probability", "probability, clustered", "accuracy, clustered", "log-likelihood")


def draw(kind: str, rate: float, n_items: int, rng: np.random.Generator) -> ValueTable:
    """Draw the items in the order in which they come, cluster by cluster."""
    sizes = np.full(n_items, 1)
    if kind == "probability, clustered":
        sizes = rng.integers(1, 6, n_items)
    elif kind == "accuracy, clustered":
        sizes = np.full(n_items, 5)
    codes = np.repeat(np.arange(n_items), sizes)[:n_items]
    rare = (rng.random(n_items) < rate)[codes]
    if kind.startswith("accuracy"):
        lost = np.stack([rng.random(n_items) < rate, rare], axis=1).astype(float)
        values = 1.0 - np.concatenate([np.zeros((n_items, 1)), lost], axis=1)
    else:
        much = 9.0 if kind == "log-likelihood" else 0.9
        steady = rate * much * rng.uniform(0.7, 1.3, n_items)
        values = 0.95 - np.stack([np.zeros(n_items), steady, much * rare.astype(float)], axis=1)
    bounded = kind != "log-likelihood"
    return ValueTable(
        ("steady", "rare"), tuple(single_removals(2)), values, codes, None, "", bounded, Planned(n_items, sizes.max())
    )


def measure(kind: str, rate: float, n_items: int, runs: int) -> dict[str, str | float]:
    """Count the runs in which either rule states an order at any look."""
    wrong = {"bets": 0, "t": 0} if kind != "log-likelihood" else {"t": 0}
    rng = np.random.default_rng(0)
    for _ in range(runs):
        table = draw(kind, rate, n_items, rng)
        ends = np.flatnonzero(np.diff(np.asarray(table.clusters), append=-1)) + 1  # looks see whole clusters
        looks = ends[np.unique(np.searchsorted(ends, range(10, n_items, 10)))]
        for rule in wrong:
            # Values shifted by 2 are not recognised as bounded: the rule for all others.
            shown = table if rule == "bets" else replace(table, values=table.values + 2.0, in_unit_interval=False)
            wrong[rule] += any(decide(shown.take_items(range(n)), "top=1").holds for n in looks)
    return {"kind": kind, "rate": rate, "runs": runs} | {rule: count / runs for rule, count in wrong.items()}


def main() -> None:
    """Print a line a design, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--items", type=int, default=1000)
    options = parser.parse_args()
    rows = []
    for kind in KINDS:
        for rate in RATES:
            rows.append(measure(kind, rate, options.items, options.runs))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps({"rows": rows, "numpy": np.__version__, **vars(options)}))


if __name__ == "__main__":
    main()
