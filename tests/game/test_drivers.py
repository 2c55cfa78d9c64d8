"""Which items drive an estimate: leaving out in closed form against leaving out indeed."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, estimate, estimator_weights, windows
from lowmem_layers.game.answers.drivers import drivers

PLAYERS = tuple("abcde")
COALITIONS = tuple(windows(5, 3))


def random_table(seed: int = 0, n: int = 30) -> ValueTable:
    rng = np.random.default_rng(seed)
    return ValueTable(PLAYERS, COALITIONS, rng.lognormal(0, 1, (n, len(COALITIONS))), rng.integers(0, 8, n))


@pytest.mark.parametrize("name", ["neighbourhood", "ablation"])
@pytest.mark.parametrize("by_cluster", [False, True])
def test_leaving_out_is_exact(name, by_cluster):
    table = random_table()
    found = drivers(table, estimator_weights(name, COALITIONS, PLAYERS), by_cluster=by_cluster)
    codes = table.cluster_codes if by_cluster else np.arange(table.n_items)
    for unit in range(codes.max() + 1):
        rest = estimate(table.take_items(np.flatnonzero(codes != unit)), name)
        np.testing.assert_allclose(found.without[unit], rest.value, rtol=1e-12)
    np.testing.assert_allclose(found.value, estimate(table, name).value, rtol=1e-12)


def test_three_odd_items_are_seen():
    rng = np.random.default_rng(1)
    drops = rng.normal(0.1, 0.2, (200, 2))
    odd = [17, 60, 151]
    drops[odd, 0] += 40.0
    table = ValueTable(("a", "b"), ((), (0,), (1,)), np.column_stack([np.zeros(200), -drops]))
    found = drivers(table, estimator_weights("ablation", table.coalitions, table.players))
    assert set(found.order(0)[:3].tolist()) == set(odd)
    assert found.n_largest == 2
    share, left = found.largest()
    assert share[0] == pytest.approx(np.sort(drops[:, 0])[-2:].sum() / drops[:, 0].sum())
    assert share[0] > 0.5 > 0.1 > share[1] > 0.01
    assert left[0] == pytest.approx(np.sort(drops[:, 0])[:-2].mean())


def test_equal_items_share_alike_and_a_gain_counts_in_its_own_direction():
    table = ValueTable(("a", "b"), ((), (0,), (1,)), np.tile([0.0, 0.5, -0.5], (100, 1)))
    share, left = drivers(table, estimator_weights("ablation", table.coalitions, table.players)).largest()
    np.testing.assert_allclose(share, 0.01)
    np.testing.assert_allclose(left, [-0.5, 0.5])


def test_what_is_unknown_stays_unknown():
    values = np.array([[1.0, 0.5, np.nan], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    table = ValueTable(("a", "b"), ((), (0,), (1,)), values, np.zeros(3, dtype=np.int64))
    weights = estimator_weights("ablation", table.coalitions, table.players)
    found = drivers(table, weights)
    assert np.isnan(found.value[1])
    assert np.isnan(found.largest()[0][1])
    assert found.order(1).tolist() == [0, 1, 2]
    assert np.isnan(drivers(table, weights, by_cluster=True).without).all()  # one cluster: nothing is left
    with pytest.raises(UsageError):
        drivers(table.take_items([0]), weights)
