"""Least squares on windows: games with a known answer, and prediction by refitting indeed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lowmem_layers.game import ValueTable, windows
from lowmem_layers.game.answers.additive import design_matrix, explained

N = 8
COALITIONS = tuple(windows(N, 3))


def table_of(loss: Any, noise: float = 0.0, n_items: int = 50) -> ValueTable:
    rng = np.random.default_rng(0)
    values = np.array([-loss(removed) for removed in COALITIONS]) + noise * rng.normal(0, 1, (n_items, len(COALITIONS)))
    return ValueTable(tuple(f"p{i}" for i in range(N)), COALITIONS, values)


def test_additive_games_are_explained_by_players_and_pairwise_ones_by_pairs():
    weights = np.random.default_rng(1).normal(1, 1, N)
    alone = explained([table_of(lambda removed: weights[list(removed)].sum())], pairs=False)
    assert alone is not None
    assert (alone.terms, alone.windows) == (N, 21)
    assert (alone.fitted, alone.predicted, alone.ci.low) == pytest.approx((1.0, 1.0, 1.0))
    extra = np.random.default_rng(2).normal(0, 2, N)  # of each player that is removed together with the one before it
    paired = table_of(lambda removed: weights[list(removed)].sum() + extra[list(removed[1:])].sum())
    single, double = (explained([paired], pairs=pairs) for pairs in (False, True))
    assert single is not None
    assert double is not None
    assert single.fitted < 0.99
    assert (double.terms, double.fitted) == (2 * N - 1, pytest.approx(1.0))


def test_predictions_are_those_of_fits_without_the_removal():
    table = table_of(lambda removed: len(removed) ** 1.5, noise=0.5)
    found = explained([table], pairs=False)
    assert found is not None
    design = design_matrix(COALITIONS[1:], N, pairs=False)
    loss = table.mean() - table.values[:, 1:].mean(axis=0)
    errors = []
    for left_out in range(len(loss)):
        kept = np.arange(len(loss)) != left_out
        fit = np.linalg.lstsq(design[kept], loss[kept], rcond=None)[0]
        errors.append(loss[left_out] - design[left_out] @ fit)
    total = ((loss - loss.mean()) ** 2).sum()
    assert found.predicted == pytest.approx(1.0 - np.square(errors).sum() / total)
    assert found.predicted < found.fitted
    assert found.ci.low < found.fitted < found.ci.high


def test_nothing_to_explain():
    assert explained([table_of(lambda removed: 0.0)], pairs=False) is None
    single = tuple(windows(N, 1))
    table = ValueTable(tuple(f"p{i}" for i in range(N)), single, np.random.default_rng(0).normal(0, 1, (5, N + 1)))
    assert explained([table], pairs=False) is None


def test_the_items_noise_does_not_lower_r_squared():
    """R² of accuracies is that of the chances to be right, not of the counts."""
    rng = np.random.default_rng(3)
    cost = rng.uniform(0.0, 0.12, N)
    chance = np.array([0.9 - cost[list(removed)].sum() - 0.1 * (len(removed) == 3) for removed in COALITIONS])
    noisy = rng.random((30_000, 1)) + rng.normal(0, 0.1, (30_000, len(COALITIONS)))
    everybody = (noisy < chance).astype(float)
    whole = explained([ValueTable(tuple(f"p{i}" for i in range(N)), COALITIONS, everybody)], pairs=False)
    assert whole is not None
    found = []
    for items in everybody[:9_000].reshape(150, 60, -1):
        fit = explained([ValueTable(tuple(f"p{i}" for i in range(N)), COALITIONS, items)], pairs=False)
        assert fit is not None
        found.append((fit.fitted - whole.fitted, fit.ci.low <= whole.fitted <= fit.ci.high))
    bias, covered = np.mean(found, axis=0)
    assert abs(bias) < 0.02
    assert covered >= 0.87


@pytest.mark.parametrize("n_changed", [0, 1])
def test_few_items_or_a_single_one_that_changes_give_no_interval_of_no_width(n_changed):
    """68.6 % [68.6 %, 68.6 %] stood there: all differences came from one item, and leaving others out shows nothing."""
    rng = np.random.default_rng(4)
    for n_items in (5, 30):
        values = np.ones((n_items, len(COALITIONS)))
        values[:n_changed, 1:] = rng.integers(0, 2, (n_changed, len(COALITIONS) - 1))
        fit = explained([ValueTable(tuple(f"p{i}" for i in range(N)), COALITIONS, values)], pairs=False)
        assert fit is None or np.isnan(fit.ci.low)
        assert (fit is None) == (n_changed == 0)
