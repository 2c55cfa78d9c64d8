"""Measure whether the items that `power` foretells have the power that it promises, on real runs.

    python -m benchmarks.power RUN [RUN ...] [--samples 400]

For every sublayer with a positive estimate, the run's own estimate is taken for the size of the effect. So many items
as foretold are drawn from the run's, with replacement, and the share of samples whose p value is below 5 % is the
power. Sublayers that need fewer than 30 items, or more than 20,000, are left out.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from lowmem_layers import open_run
from lowmem_layers.game import ValueTable, estimator_weights
from lowmem_layers.game.answers.power import items_needed
from lowmem_layers.game.estimators.weights import Estimator
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import two_sided_p
from lowmem_layers.game.values.table import FloatArray

VALUES = ("acc", "probability", "loglikelihood")
ESTIMATORS: tuple[Estimator, ...] = ("neighbourhood", "ablation")


def measured(table: ValueTable, weights: FloatArray, n: int, samples: int, rng: np.random.Generator) -> float:
    """Give the share of samples of n items in which one estimate is resolved. Shapes: `weights` (1, coalitions)."""
    hits = 0
    for _ in range(samples):
        drawn = table.take_items(rng.integers(0, table.n_items, n))
        drawn = ValueTable(table.players, table.coalitions, drawn.values)  # every item drawn is one of its own
        hits += bool(two_sided_p(estimate_influence(drawn, weights))[0] < 0.05)
    return hits / samples


def main() -> None:
    """Print one line a run, task, value and estimator, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--samples", type=int, default=400)
    options = parser.parse_args()
    rng, rows = np.random.default_rng(0), []
    asked = [(run, chosen) for run in map(open_run, options.runs) for chosen in VALUES]
    for table, value in [(each, chosen) for run, chosen in asked for each in run.value_tables(chosen)]:
        for name in ESTIMATORS:
            weights = estimator_weights(name, table.coalitions, table.players)
            used = (weights != 0).any(axis=0)  # the other coalitions would only be copied about
            coalitions = tuple(c for c, keep in zip(table.coalitions, used, strict=True) if keep)
            small = ValueTable(table.players, coalitions, table.values[:, used])
            sizes, found = small.values.mean(axis=0) @ weights[:, used].T, []
            for player in np.flatnonzero(sizes > 0):
                own = weights[player : player + 1, used]
                matters = own[0] != 0
                one = ValueTable(
                    table.players, tuple(np.array(coalitions, dtype=object)[matters]), small.values[:, matters]
                )
                n = items_needed([one], [own[:, matters]], float(sizes[player])).items[0]
                if 30 <= n <= 20_000:
                    found.append(measured(one, own[:, matters], int(n), options.samples, rng))
            power = np.array(found)
            rows.append(
                {
                    "task": table.task, "items": table.n_items, "value": value, "estimator": name,
                    "sublayers": len(power), "mean": round(float(power.mean()), 3),
                    "between 75 and 85 %": round(float(((power >= 0.75) & (power <= 0.85)).mean()), 2),
                    "least": float(power.min()), "most": float(power.max()),
                }
            )  # fmt: skip
            print("  ".join(f"{key} {cell}" for key, cell in rows[-1].items()), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
