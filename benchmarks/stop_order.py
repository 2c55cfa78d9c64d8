"""Measure whether the order of items misleads an early stop, where clusters have unequal sizes.

    python -m benchmarks.stop_order [--runs 200] [--data-dir FOLDER]

Two sublayers: items in large clusters lose by the first one, items on their own by the second; over all items the
second costs a little more, so `top=1` naming the first is wrong. Two orders are held against each other on the same
items, a look every 20 items, from 30 clusters on:

    items       the items are shuffled, and a cluster stands where its first member was drawn (until version 0.2)
    clusters    the clusters are shuffled, whatever their size (`item_order`, what a run does)

"clustered" is the share of items in clusters of two or more, "large first" the same among the first tenth. Sizes: 300
items on their own and 20 clusters of 15; with the benchmarks' data also BoolQ's passages and WinoGrande's twins, as
they are. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lowmem_layers.game import ValueTable, decide, item_order, single_removals
from lowmem_layers.tasks import load_tasks

LOOK = 20  # items between looks
EDGE = 0.06  # by how much the second sublayer costs more over all items, in standard deviations of an item


def by_items(clusters: list[int], seed: int) -> list[int]:
    """Shuffle the items, then place each cluster where its first member was drawn."""
    drawn = [int(i) for i in np.random.default_rng(seed).permutation(len(clusters))]
    first: dict[int, int] = {}
    for place, item in enumerate(drawn):
        first.setdefault(clusters[item], place)
    return sorted(drawn, key=lambda item: first[clusters[item]])


ORDERS: dict[str, Callable[[list[int], int], list[int]]] = {"items": by_items, "clusters": item_order}


def draw(clusters: list[int], rng: np.random.Generator) -> ValueTable:
    """Draw losses in nats: 2 more of the preferred sublayer; over these very items the second costs `EDGE` more."""
    codes = np.array(clusters)
    large = np.bincount(codes)[codes] > 1
    shared = rng.normal(size=(codes.max() + 1, 2))[codes]
    losses = 0.6 * shared + 0.8 * rng.normal(size=(len(codes), 2)) + 2.0 * np.stack([large, ~large], axis=1)
    losses += [1.0, 1.0 + EDGE] - losses.mean(axis=0)
    values = np.concatenate([np.zeros((len(codes), 1)), -losses], axis=1)
    return ValueTable(("first", "second"), tuple(single_removals(2)), values, codes)


def measure(name: str, clusters: list[int], runs: int) -> list[dict[str, object]]:
    """Count, by order, how often `top=1` was stated and how often it was wrong."""
    rows, large = [], np.bincount(clusters)[clusters] > 1
    for how, order_of in ORDERS.items():
        stated = wrong = 0
        early = []
        for run in range(runs):
            table, order = draw(clusters, np.random.default_rng(run)), order_of(clusters, run)
            early.append(large[order[: len(order) // 10]].mean())
            for n in range(LOOK, len(order) + 1, LOOK):
                decision = decide(table.take_items(order[:n]), "top=1")
                if decision.holds:
                    stated, wrong = stated + 1, wrong + ("is first" in decision.text)
                    break
        shares = {"clustered": round(float(large.mean()), 3), "large first": round(float(np.mean(early)), 3)}
        rows.append({"sizes": name, "order": how, "runs": runs, **shares, "stated": stated, "wrong": wrong})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Print a line a design and order, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--data-dir", default=os.environ.get("LOWMEM_LAYERS_DATA"))
    options = parser.parse_args()
    designs = {"300 of 1, 20 of 15": [*range(300), *np.repeat(np.arange(300, 320), 15).tolist()]}
    if options.data_dir:
        for task in load_tasks(("boolq", "winogrande"), data_dir=Path(options.data_dir)):
            codes = np.unique([item.cluster for item in task.items], return_inverse=True)[1]
            designs[task.name] = codes.tolist()
    rows = [row for name, clusters in designs.items() for row in measure(name, clusters, options.runs)]
    print(json.dumps({"rows": rows, "numpy": np.__version__, "runs": options.runs}))


if __name__ == "__main__":
    main()
