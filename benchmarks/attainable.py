"""Show which coverage an interval of a small effect on accuracy can have at all, and which ours has, exactly.

    python -m benchmarks.attainable [--items 100 232] [--effects 0.003 0.01 0.02 0.03]

Of n items a sublayer breaks b and repairs c, so that the effect is their rates' difference d. An interval at 95 % is,
for each d, a choice of the tables (b, c) that reject d: too many broken (more broken reject too, more repaired do not)
or too few. Probabilities of tables are trinomial, so coverage is a sum and nothing is simulated. Where nothing is
repaired (a model that is always right) the least coverage is looked for, over all such choices, that still leaves
`floor` at every rate of repairs of REPAIRED, by integer programming; and whether any choice stays within 93–97 % at all
of them. A bound from a few rates only is a bound: more rates can but raise it. The base accuracy is no way out: all
wrong items may be the repaired ones. Beside ours, three other intervals: mid-P (exact, two-sided by the distance from
the effect, at its most likely rate of repairs), the likelihood ratio with ours' quantile, and Jeffreys' (posterior
quantiles under Dirichlet(½, ½, ½), by 20,000 draws). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, eye_array, hstack, vstack
from scipy.special import gammaln, stdtrit, xlogy
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
    table_broken, table_repaired = np.meshgrid(broken, repaired, indexing="ij")
    return table_broken.astype(float), table_repaired.astype(float)


def log_probability(
    n_items: int, broken: FloatArray, repaired: FloatArray, breaks: FloatArray, repairs: FloatArray
) -> FloatArray:
    """Give the trinomial log-probability of a table at these rates. Shapes: any that broadcast."""
    kept = n_items - broken - repaired
    ways = gammaln(n_items + 1.0) - gammaln(broken + 1.0) - gammaln(repaired + 1.0) - gammaln(kept + 1.0)
    return ways + xlogy(broken, breaks) + xlogy(repaired, repairs) + xlogy(kept, 1.0 - breaks - repairs)


def probabilities(n_items: int, effect: float, broken: FloatArray, repaired: FloatArray) -> FloatArray:
    """Give every table's probability at every rate of repairs with at most 3 expected. Shapes: (rates, b, c)."""
    rates = np.array([rate for rate in REPAIRED if n_items * rate <= 3.01])[:, None, None]
    return np.exp(log_probability(n_items, broken, repaired, effect + rates, rates))


def steps(shape: tuple[int, int]) -> coo_array:
    """State what a rejection implies, as rows of x[implied] − x[rejected] ≥ 0 over (too many, too few) broken."""
    place = np.arange(np.prod(shape)).reshape(shape)
    more, fewer = (place[1:], place[:-1]), (place[:, :-1], place[:, 1:])  # (implied, rejected) by too many broken
    implied, rejected = (np.concatenate([one.ravel(), two.ravel()]) for one, two in zip(more, fewer, strict=True))
    row, size = np.arange(len(implied)), place.size
    many = coo_array((np.repeat([1.0, -1.0], len(row)), (np.tile(row, 2), np.r_[implied, rejected])), (len(row), size))
    return coo_array(vstack([hstack([many, 0 * many]), hstack([0 * many, -many])]))


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


def missed_by(n_items: int, effect: float, broken: FloatArray, repaired: FloatArray) -> dict[str, np.ndarray]:
    """Say for which tables each interval leaves the effect out. Shapes: (b, c) each."""
    b, c = broken.ravel(), repaired.ravel()
    item = np.arange(n_items)[:, None]
    estimate = influence((item < b).astype(float) - (item >= n_items - c), "ablation")
    ci = mean_interval(estimate, 0.95)
    missed = {"ours": (ci.low > effect) | (ci.high < effect)}
    rates = np.linspace(0.0, 0.2, 8001)[:, None]
    log_p = log_probability(n_items, b, c, effect + rates, rates)  # (rates, tables)
    likely = rates[log_p.argmax(axis=0)]  # (tables, 1)
    p = np.exp(log_probability(n_items, b, c, effect + likely, likely))  # (tables observed, tables)
    distance = np.abs(b - c - n_items * effect)
    gap = distance - distance[:, None]
    missed["mid-P"] = 1.0 - (p * (gap < -1e-9)).sum(axis=1) - 0.5 * (p * (np.abs(gap) <= 1e-9)).sum(axis=1) < 0.05
    ratio = 2.0 * (log_probability(n_items, b, c, b / n_items, c / n_items) - log_p.max(axis=0))
    missed["likelihood ratio"] = ratio > stdtrit(estimate.dof, 0.975) ** 2
    counts = np.stack([b, c, n_items - b - c], axis=1)
    drawn = np.random.default_rng(0).gamma(counts + 0.5, size=(20_000, *counts.shape))
    low, high = np.quantile((drawn[..., 0] - drawn[..., 1]) / drawn.sum(axis=-1), [0.025, 0.975], axis=0)
    missed["Jeffreys"] = (low > effect) | (high < effect)
    return {name: each.reshape(broken.shape) for name, each in missed.items()}


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
            missed = missed_by(n_items, effect, broken, repaired)
            covered = {name: 1.0 - (p * each).sum(axis=(1, 2)) for name, each in missed.items()}  # (rates,) each
            counts = binom.pmf(np.arange(n_items + 1), n_items, effect)  # if it were known that nothing is repaired
            runs = np.concatenate([np.cumsum(counts[first:]) for first in range(n_items + 1)])
            least = [least_coverage(p, floor) for floor in FLOORS]
            possible = least_coverage(p, *AIM) is not None
            by_count = bool(((runs >= AIM[0]) & (runs <= AIM[1])).any())
            row = {"items": n_items, "effect": effect, "least": least}
            row |= {name: list(each) for name, each in covered.items()}
            rows.append(row | {"aim_possible": possible, "aim_possible_without_repairs": by_count})
            bounds = ", ".join(f"{x:.2%} by rules of {floor:.0%}" for x, floor in zip(least, FLOORS, strict=True) if x)
            found = ", ".join(f"{name} {x[0]:.2%} ({x.min():.2%})" for name, x in covered.items())
            print(
                f"{n_items} items, {effect:.1%}: without repairs (least at any rate): {found}; least of any {bounds}; "
                f"93–97 %: {possible}, were repairs known to be none: {by_count}",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
