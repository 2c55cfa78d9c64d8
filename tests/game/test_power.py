"""The items that resolve an effect: the textbook's formula, and power as measured on samples of the foretold size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, estimator_weights
from lowmem_layers.game.answers.power import items_needed
from lowmem_layers.game.uncertainty.errors import estimate_influence
from lowmem_layers.game.uncertainty.intervals import two_sided_p

PLAYERS, COALITIONS = ("a", "b"), ((), (0,), (1,))
RULE = 7.848879734349086  # (z of 97.5 % + z of 80 %)²


def table_of(drops: Any, clusters: Any = None, base: Any = 0.0) -> ValueTable:
    """Make a table whose items lose `drops` when a player is removed. Shapes: `drops` (items, 2)."""
    drops = np.asarray(drops, dtype=float)
    base = np.broadcast_to(base, len(drops))
    return ValueTable(PLAYERS, COALITIONS, np.column_stack([base, base - drops[:, 0], base - drops[:, 1]]), clusters)


def drops_needed(table, size, **options):
    return items_needed([table], [estimator_weights("ablation", COALITIONS, PLAYERS)], size, **options)


def test_the_textbooks_formula():
    rng = np.random.default_rng(0)
    drops, base = rng.normal(0.3, [1.0, 3.0], (40_000, 2)), rng.normal(0, 2.0, 40_000)
    found = drops_needed(table_of(drops, base=base), 0.02)
    np.testing.assert_allclose(found.items, RULE * drops.var(axis=0) / 0.02**2, rtol=0.01)
    # apart: the variances of the full model's values and of those without the player add up
    apart = base.var() + (base[:, None] - drops).var(axis=0)
    np.testing.assert_allclose(found.unpaired, RULE * apart / 0.02**2, rtol=0.01)
    np.testing.assert_allclose(found.design_effect, 1.0)
    # the variance of a normal variance is 2 σ⁴ / n
    half = 1.96 * np.sqrt(2 / 40_000)
    np.testing.assert_allclose(found.ci.high / found.items - 1, half, rtol=0.1)
    np.testing.assert_allclose(1 - found.ci.low / found.items, half, rtol=0.1)
    more = drops_needed(table_of(drops, base=base), 0.02, level=0.99, power=0.9)
    np.testing.assert_allclose(more.items / found.items, (2.5758 + 1.2816) ** 2 / RULE, rtol=0.01)


def test_two_copies_of_every_item_need_twice_as_many():
    drops = np.random.default_rng(1).normal(0.0, 1.0, (500, 2))
    single = drops_needed(table_of(drops), 0.05)
    double = drops_needed(table_of(np.repeat(drops, 2, axis=0), np.repeat(np.arange(500), 2)), 0.05)
    np.testing.assert_allclose(double.design_effect, 2.0, rtol=0.01)
    np.testing.assert_allclose(double.items / single.items, 2.0, rtol=0.01)


def test_several_tasks_count_all_their_items():
    drops = np.random.default_rng(2).normal(0.0, 1.0, (800, 2))
    weights = estimator_weights("ablation", COALITIONS, PLAYERS)
    whole = drops_needed(table_of(drops), 0.05).items
    halves = items_needed([table_of(drops[:400]), table_of(drops[400:])], [weights, weights], 0.05).items
    np.testing.assert_allclose(halves, whole, rtol=0.02)


def skewed(rng, n):
    return rng.gamma(1.0, 1.0, n) - 0.8, None


def broken(rng, n):
    return (rng.random(n) < 0.06).astype(float) - (rng.random(n) < 0.03), None


def passages(rng, n):
    codes = np.arange(n) // 4
    return 0.3 + rng.normal(0, 1, n) + rng.normal(0, 1, n)[codes], codes


@pytest.mark.parametrize(("draw", "size"), [(skewed, 0.2), (broken, 0.03), (passages, 0.3)])
def test_the_foretold_items_have_the_power_that_was_asked_for(draw, size):
    rng = np.random.default_rng(3)
    weights = estimator_weights("ablation", COALITIONS, PLAYERS)

    def table(n):
        drops, codes = draw(rng, n)
        right = (drops >= 0).astype(float) if draw is broken else 0.0  # an item that is won was wrong before
        return table_of(np.column_stack([drops, drops]), codes, right)

    n = int(drops_needed(table(100_000), size).items[0])
    assert 100 < n < 1000
    found = [estimate_influence(table(n), weights) for _ in range(300)]
    hits = np.mean([two_sided_p(each)[0] < 0.05 and each.value[0] > 0 for each in found])
    assert 0.75 <= hits <= 0.86


def test_the_interval_holds_the_number_that_the_true_variance_gives():
    rng = np.random.default_rng(4)
    tables = [table_of(rng.gamma(4.0, 1.0, (150, 2))) for _ in range(60)]
    found = [drops_needed(table, 0.1).ci for table in tables]
    inside = [(ci.low <= RULE * 4.0 / 0.1**2) & (ci.high >= RULE * 4.0 / 0.1**2) for ci in found]
    assert 0.9 <= np.mean(inside) <= 0.99


def test_where_no_answer_changed_the_effect_itself_tells_the_least():
    unchanged = table_of(np.zeros((50, 2)), base=np.tile([0.0, 1.0], 25))
    found = drops_needed(unchanged, 0.01)
    assert found.items[0] >= RULE * 0.01 * 0.99 / 0.01**2 * 0.999
    assert found.items[0] < 2000


def test_what_is_unknown_and_what_is_refused():
    lonely = table_of([[0.5, 0.2]])
    assert np.isnan(drops_needed(lonely, 0.1).items).all()
    hole = table_of([[0.5, np.nan], [0.3, 0.1], [0.2, 0.0]])
    found = drops_needed(hole, 0.1)
    assert np.isfinite(found.items[0])
    assert np.isnan([found.items[1], found.ci.low[1], found.unpaired[1]]).all()
    endless = drops_needed(table_of(np.random.default_rng(0).normal(0, 1, (30, 2))), 1e-6)
    assert np.isinf(endless.items).all()
    for size, options in ((0.0, {}), (np.nan, {}), (0.1, {"power": 1.0}), (0.1, {"power": 0.2}), (0.1, {"level": 2})):
        with pytest.raises(UsageError):
            drops_needed(lonely, size, **options)
