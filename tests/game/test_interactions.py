"""Interactions, multiplicity, cornerstones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, cornerstones, interactions, windows
from lowmem_layers.game.uncertainty.multiplicity import adjusted
from tests.game.games import ClosedFormGame, additive_game, unanimity_game

NAMES = ("attn.0", "ffn.0", "attn.1", "ffn.1", "attn.2", "ffn.2", "attn.3", "ffn.3")


def sampled(coalitions, probabilities, n_items, seed=0, clusters=None):
    """Draw accuracies whose coalitions are right with these probabilities, easier items first to be right."""
    ease = np.random.default_rng(seed).random((n_items, 1))
    return ValueTable(NAMES, tuple(coalitions), (ease < np.array(probabilities)).astype(float), clusters)


def by_pair(found):
    return dict(zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.value, strict=True))


def test_signs():
    either = ClosedFormGame("either of 1, 2", 4, lambda s: float(bool(s & {1, 2})), np.array([0, 0.5, 0.5, 0]))
    redundant = by_pair(interactions(either.table(windows(4, 3))))
    assert redundant[1, 2] == -1.0
    synergy = by_pair(interactions(unanimity_game(4, (1, 2)).table(windows(4, 3))))
    assert synergy[1, 2] == 1.0
    assert synergy[0, 1] == synergy[0, 2] == 0.0
    assert (0, 3) not in synergy


def test_by_hand():
    table = ValueTable(
        ("a", "b", "c"), ((), (0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)), np.array([[10.0, 6, 7, 9, 1, 5, 0]])
    )
    result = interactions(table)
    # a-b: 10-6-7+1; a-c given that b is gone: 7-1-5+0; b-c: 10-7-9+5.
    assert by_pair(result) == {(0, 1): -2.0, (0, 2): 1.0, (1, 2): -1.0}
    assert np.isnan(result.ci.low).all()
    assert result.kind(0) == "not significant"


def test_additive_games_have_none():
    assert interactions(additive_game([1.0, 2.0, -3.0, 0.5]).table(windows(4, 4))).value == pytest.approx(
        0.0, abs=1e-12
    )


def test_needs_windows_of_two():
    with pytest.raises(UsageError, match="pair"):
        interactions(additive_game([1.0, 2.0]).table(windows(2, 1)))
    with pytest.raises(UsageError, match="not measured"):
        interactions(additive_game([1.0, 2.0, 3.0]).table([(), (0,), (1,), (2,), (0, 1)]), max_removed=2)


def test_significant_redundancy_is_found_and_the_rest_is_not():
    rng = np.random.default_rng(0)
    coalitions = windows(8, 2)
    alive = rng.random((400, 8)) < 0.97
    covered = {1, 2}  # an item is lost when both are gone; alone neither matters
    values = np.array(
        [[float(row[list(r)].all() if r else 1.0) * (not covered <= set(r)) for r in coalitions] for row in alive]
    )
    result = interactions(ValueTable(NAMES, tuple(coalitions), values))
    found = [(int(result.first[p]), int(result.second[p])) for p in np.flatnonzero(result.significant)]
    assert found == [(1, 2)]
    assert result.kind(int(np.flatnonzero(result.significant)[0])) == "redundancy"


def test_holm_and_benjamini_hochberg_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted(p, "holm"), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjusted(p, "bh"), [0.02, 0.04, 0.04, 0.02])
    with_nan = adjusted(np.array([0.01, np.nan, 0.5]), "holm")
    np.testing.assert_allclose(with_nan, [0.03, np.nan, 1.0])
    with pytest.raises(UsageError):
        adjusted(p, "none")


def test_adjustment_agrees_with_scipy():
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(adjusted(p, "bh"), stats.false_discovery_control(p))


def test_cornerstones_need_share_and_collapse():
    coalitions = windows(8, 1)
    table = sampled(coalitions, [0.8, 0.25, 0.75, 0.5, *[0.79] * 5], 2000)
    result = cornerstones(table, chance=0.25)
    assert result.names == ("attn.0",)  # attn.1 has a large share too, but leaves half the margin
    assert result.remaining[0] == pytest.approx(0.0, abs=0.05)
    assert "2/8" in result.rule
    assert cornerstones(sampled(coalitions, [0.8, 0.25, 0.75, 0.5, *[0.79] * 5], 12), chance=0.25).names == ()


def test_a_model_at_chance_has_no_cornerstones():
    table = sampled(windows(8, 1), [0.26, 0.1, *[0.25] * 7], 200)
    result = cornerstones(table, chance=0.25)
    assert result.names == ()
    assert np.isnan(result.remaining).all()


def test_false_cornerstones_are_rare():
    # Removing attn.0 leaves exactly the tolerated quarter of the margin: calling it a collapse is an error.
    coalitions = windows(8, 1)
    probabilities = [0.85, 0.25 + 0.25 * 0.6, *[0.84] * 7]
    wrong = [
        cornerstones(sampled(coalitions, probabilities, 300, seed), chance=0.25).is_cornerstone[0]
        for seed in range(200)
    ]
    assert np.mean(wrong) <= 0.05


@pytest.mark.parametrize("options", [{"factor": 0.0}, {"tolerance": 1.0}, {"tolerance": -0.1}, {"level": 1.0}])
def test_bad_rules_are_refused(options):
    with pytest.raises(UsageError, match="factor"):
        cornerstones(sampled(windows(8, 1), [0.5] * 9, 20), chance=0.25, **options)


def test_one_item_makes_no_cornerstone_and_no_interaction():
    table = ValueTable(NAMES, tuple(windows(8, 2)), np.random.default_rng(0).integers(0, 2, (1, 16)).astype(float))
    assert cornerstones(table, chance=0.25).names == ()
    assert not interactions(table).significant.any()
