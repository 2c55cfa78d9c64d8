"""Show which coverage an interval of a small effect on accuracy can have at all, and which ours has, exactly.

    python -m benchmarks.attainable [--items 100 232] [--effects 0.003 0.01 0.02 0.03]

Of n items a sublayer breaks b and repairs c, so that the effect is their rates' difference d. An interval at 95 % is,
for each d, a choice of the tables (b, c) that reject d: too many broken (more broken reject too, more repaired do not)
or too few. Probabilities of tables are trinomial, so coverage is a sum and nothing is simulated. Where nothing is
repaired (a model that is always right) the least coverage is looked for, over all such choices, that still leaves
`floor` at every rate of repairs of REPAIRED, by integer programming; and whether any choice stays within 93–97 % at all
of them. A bound from a few rates only is a bound: more rates can but raise it. The base accuracy is no way out: all
wrong items may be the repaired ones. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, eye_array, hstack, vstack
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from benchmarks.small_effects import influence
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.game.values.table import FloatArray

REPAIRED = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.03)
FLOORS, AIM, MOST_REPAIRED = (0.93, 0.95), (0.93, 0.97), 12


def tables_of(n_items: int, effect: float) -> tuple[FloatArray, FloatArray]:
    """List (b, c) on a grid that holds all but a negligible part of the probability. Shapes: (b, c) twice."""
    expected = n_items * effect + 3.0
    broken, repaired = np.arange(int(expected + 4.0 * expected**0.5 + 3.0)), np.arange(MOST_REPAIRED)
    return tuple(x.astype(float) for x in np.meshgrid(broken, repaired, indexing="ij"))  # type: ignore[return-value]


def probabilities(n_items: int, effect: float, broken: FloatArray, repaired: FloatArray) -> FloatArray:
    """Give every table's probability at every rate of repairs with at most 3 expected. Shapes: (rates, b, c)."""
    rates = np.array([rate for rate in REPAIRED if n_items * rate <= 3.01])[:, None, None]
    kept = n_items - broken - repaired
    ways = gammaln(n_items + 1.0) - gammaln(broken + 1.0) - gammaln(repaired + 1.0) - gammaln(kept + 1.0)
    log_p = xlogy(broken, effect + rates) + xlogy(repaired, rates) + xlogy(kept, 1.0 - effect - 2.0 * rates)
    return np.exp(ways + log_p)


def steps(shape: tuple[int, int]) -> coo_array:
    """State what a rejection implies, as rows of x[implied] − x[rejected] ≥ 0 over (too many, too few) broken."""
    place = np.arange(np.prod(shape)).reshape(shape)
    more, fewer = (place[1:], place[:-1]), (place[:, :-1], place[:, 1:])  # (implied, rejected) by too many broken
    implied, rejected = (np.concatenate([one.ravel(), two.ravel()]) for one, two in zip(more, fewer, strict=True))
    row, size = np.arange(len(implied)), place.size
    many = coo_array((np.repeat([1.0, -1.0], len(row)), (np.tile(row, 2), np.r_[implied, rejected])), (len(row), size))
    return vstack([hstack([many, 0 * many]), hstack([0 * many, -many])])


def least_coverage(p: FloatArray, floor: float, ceiling: float = 1.0) -> float | None:
    """Find the least coverage without repairs of any rule that covers `floor` to `ceiling` at all rates; None if no
    rule does. Shapes: `p` (rates, b, c)."""
    mass, outside = p.reshape(len(p), -1), 1.0 - p.sum(axis=(1, 2))
    size = mass.shape[1]
    rejected = np.hstack([mass, mass])  # rates × both kinds of rejection
    solved = milp(
        -np.tile(mass[0], 2),
        integrality=np.ones(2 * size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(steps(p.shape[1:]).tocsr(), lb=0.0),
            LinearConstraint(hstack([eye_array(size), eye_array(size)]).tocsr(), ub=1.0),
            LinearConstraint(rejected, lb=np.maximum(1.0 - ceiling - outside, 0.0), ub=1.0 - floor),
        ],
    )
    if solved.status not in (0, 2):
        raise RuntimeError(f"not solved: {solved.message}")
    return None if solved.status == 2 else 1.0 + solved.mip_dual_bound


def our_coverage(n_items: int, effect: float, p: FloatArray, broken: FloatArray, repaired: FloatArray) -> FloatArray:
    """Sum the probabilities of the tables whose interval, by the package, holds the effect. Shapes: (rates,)."""
    item = np.arange(n_items)[:, None]
    rows = (item < broken.ravel()).astype(float) - (item >= n_items - repaired.ravel())
    ci = mean_interval(influence(rows, "ablation"), 0.95)
    missed = ((ci.low > effect) | (ci.high < effect)).reshape(broken.shape)
    return 1.0 - (p * missed).sum(axis=(1, 2))


def main() -> None:
    """Print one line a setting, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=(100, 232))
    parser.add_argument("--effects", type=float, nargs="+", default=(0.003, 0.01, 0.02, 0.03))
    options = parser.parse_args()
    rows = []
    for n_items in options.items:
        for effect in options.effects:
            broken, repaired = tables_of(n_items, effect)
            p = probabilities(n_items, effect, broken, repaired)
            ours = our_coverage(n_items, effect, p, broken, repaired)
            counts = binom.pmf(np.arange(n_items + 1), n_items, effect)  # if it were known that nothing is repaired
            runs = np.concatenate([np.cumsum(counts[first:]) for first in range(n_items + 1)])
            least = [least_coverage(p, floor) for floor in FLOORS]
            possible = least_coverage(p, *AIM) is not None
            by_count = bool(((runs >= AIM[0]) & (runs <= AIM[1])).any())
            row = {"items": n_items, "effect": effect, "ours": list(ours), "least": least}
            rows.append(row | {"aim_possible": possible, "aim_possible_without_repairs": by_count})
            bounds = ", ".join(f"{x:.2%} by rules of {floor:.0%}" for x, floor in zip(least, FLOORS, strict=True) if x)
            print(
                f"{n_items} items, {effect:.1%}: ours {ours[0]:.2%} ({ours.min():.2%} at some rate of repairs); least "
                f"{bounds}; 93–97 %: {possible}, were repairs known to be none: {by_count}",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
