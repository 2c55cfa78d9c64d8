"""Options under a budget: the program's answer is the best of all answers."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.allotment import allot


def cost_of(chosen, costs, pairs):
    single = sum(costs[i, f] for i, f in enumerate(chosen))
    return single + (0 if pairs is None else sum(pairs[i, f, g] for i, (f, g) in enumerate(pairwise(chosen))))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_it_is_the_best_of_all(seed, with_pairs):
    rng = np.random.default_rng(seed)
    n, f = 4, 3
    costs, weights = rng.normal(size=(n, f)), rng.integers(1, 9, size=(n, f)).astype(float)
    pairs = rng.normal(size=(n - 1, f, f)) if with_pairs else None
    budget = float(rng.integers(weights.min(1).sum(), weights.max(1).sum() + 1))
    fits = [c for c in product(range(f), repeat=n) if sum(weights[i, o] for i, o in enumerate(c)) <= budget]
    best = min(cost_of(c, costs, pairs) for c in fits)
    found = allot(costs, weights, budget, pairs)
    assert found in fits
    assert cost_of(found, costs, pairs) == pytest.approx(best)


def test_a_budget_that_is_met_exactly_is_met():
    weights = np.full((60, 1), 0.1) * 4.5
    assert allot(np.zeros((60, 1)), weights, 6.0 * 4.5) == (0,) * 60


@pytest.mark.parametrize(("costs", "budget", "message"), [
    (np.zeros((2, 2)), 1.9, "takes 2, the budget is 1.9"),
    (np.array([[0.0, np.nan], [0.0, 0.0]]), 9.0, "not known"),
])  # fmt: skip
def test_what_cannot_be_allotted_is_refused(costs, budget, message):
    with pytest.raises(UsageError, match=message):
        allot(costs, np.ones((2, 2)), budget)
