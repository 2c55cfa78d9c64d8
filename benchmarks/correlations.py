"""Measure whether correlations without noise are right: their bias, and how often their intervals hold the truth.

    python -m benchmarks.correlations [--runs 200] [--seed 0]

Two runs of 60 sublayers whose true importances correlate as stated, each measured on the same items (*paired*: the
larger part of an item's noise is the same in both runs) or on items of its own. Items are normal; the noise of an
estimate is the stated multiple of the spread of the true importances. Nominal 95 %.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from lowmem_layers.game import spearman_rho
from lowmem_layers.game.uncertainty.disattenuation import corrected
from lowmem_layers.game.uncertainty.errors import influence_of

SUBLAYERS = 60
SETTINGS = [(rho, paired, n, noise) for rho in (0.0, 0.5, 0.9, 1.0) for paired in (True, False)
            for n, noise in ((100, 0.5), (100, 1.0), (400, 0.5))]  # fmt: skip


def runs_of(rng: np.random.Generator, rho: float, paired: bool, n_items: int, noise: float) -> tuple[np.ndarray, ...]:
    """Draw both truths, and what `corrected` takes. Shapes: truths (sublayers,), pieces (rows, sublayers)."""
    one, own = rng.standard_normal((2, SUBLAYERS))
    other = rho * one + np.sqrt(1.0 - rho**2) * own
    spread = noise * np.sqrt(n_items)  # of an item
    shared = rng.standard_normal((n_items, SUBLAYERS)) if paired else 0.0
    sides = []
    for truth in (one, other):
        own_noise = rng.standard_normal((n_items, SUBLAYERS))
        mixed = np.sqrt(0.8) * shared + np.sqrt(0.2) * own_noise if paired else own_noise
        sides.append(influence_of(truth + spread * mixed, np.arange(n_items)))
    a, b = sides
    pieces = (a.pieces, b.pieces)
    if not paired:
        pieces = np.concatenate([a.pieces, 0 * a.pieces]), np.concatenate([0 * b.pieces, b.pieces])
    return one, other, a.value, b.value, *pieces


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    for rho, paired, n_items, noise in SETTINGS:
        rng, found = np.random.default_rng(options.seed), []
        for _ in range(options.runs):
            one, other, *measured = runs_of(rng, rho, paired, n_items, noise)
            each = corrected(*measured, np.full(SUBLAYERS, n_items - 1.0), level=0.95)
            for name, true, value, ci in (
                ("pearson", float(np.corrcoef(one, other)[0, 1]), each.pearson, each.pearson_ci),
                ("spearman", spearman_rho(one, other), each.spearman, each.spearman_ci),
            ):
                inside = ci.low - 1e-9 <= true <= ci.high + 1e-9
                found.append((name, inside, value - true, ci.high - ci.low))
        row = {"rho": rho, "paired": paired, "items": n_items, "noise": noise}
        for name in ("pearson", "spearman"):
            mine = np.array([each[1:] for each in found if each[0] == name], dtype=float)
            row |= {f"{name}_covered": 100 * float(mine[:, 0].mean()), f"{name}_bias": float(np.nanmean(mine[:, 1]))}
            row |= {f"{name}_width": float(mine[:, 2].mean())}
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
