"""What a run says before its numbers: chance, contradictions, and intervals that may be too short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lowmem_layers.findings.cautions import cautions
from lowmem_layers.findings.importance import CONTRADICTION, as_table
from lowmem_layers.game import ValueTable, estimate, windows

PLAYERS = ("attn.0", "ffn.0", "attn.1")


def nats(n_items=100, *, skewed=False, collapsed=False):
    """Draw losses: of attn.0 mostly alone, and (`collapsed`) a gain once its neighbour is gone."""
    rng = np.random.default_rng(0)
    coalitions = tuple(windows(3, 3))
    noise = rng.lognormal(0.0, 1.8, (n_items, 1)) if skewed else rng.normal(1.0, 0.1, (n_items, 1))
    levels = np.array([{(): 0.0, (0,): -3.0}.get(removed, -9.0 if 1 in removed else -0.2) for removed in coalitions])
    if collapsed:
        levels[[1 in removed and 0 in removed for removed in coalitions]] = 0.0
    return ValueTable(PLAYERS, coalitions, noise * levels, task="one")


def test_a_model_at_chance_is_said_first():
    found = estimate(nats(collapsed=True))
    lines = cautions([("boolq", 0.55, 0.5), ("piqa", 0.49, 0.5), ("text", 0.1, None)], [("nats", "nats", 1.0, found)])
    assert lines[0].startswith("the full model is not certainly above chance on piqa:")
    assert len(lines) == 2


def test_an_estimate_and_a_drop_of_opposite_signs_are_marked_with_the_reason():
    found = estimate(nats(collapsed=True))
    assert found.contradicts.tolist() == [True, False, False]
    assert found.value[0] < 0 < found.ablation_drop[0]
    (line,) = cautions([], [("nats", "nats", 1.0, found)])
    assert "attn.0 (estimate −5.04 nats, drop 3.02 nats)" in line
    assert "collapsed" in line
    assert as_table([found])["note"].to_pylist() == [CONTRADICTION, "", ""]
    unknown = replace(found, ci=replace(found.ci, high=found.ci.high * np.nan))
    assert not unknown.contradicts.any()


def test_skewed_items_say_from_how_many_on_their_intervals_hold():
    plain, skewed = estimate(nats()), estimate(nats(40, skewed=True))
    assert (plain.ci_holds_from == 30).all()
    assert cautions([], [("nats", "nats", 1.0, plain)]) == ()
    per_item = nats(40, skewed=True).values
    lost = per_item[:, 0] - per_item[:, nats().column_index((0,))]
    gamma = ((lost - lost.mean()) ** 3).mean() / lost.std() ** 3  # the same items: every contribution is a multiple
    np.testing.assert_allclose(skewed.ci_holds_from, np.ceil(gamma**2 / 0.09), rtol=0.05)
    (line,) = cautions([], [("nats", "nats", 1.0, skewed)])
    assert "3 of 3 sublayers may be too short after 40 items" in line
    table = as_table([skewed])
    assert table["ci_holds_from"].to_pylist() == skewed.ci_holds_from.tolist()
    assert set(table["n_clusters"].to_pylist()) == {40}
    assert set(table["level"].to_pylist()) == {0.95}


def test_accuracies_need_no_such_number():
    right = ValueTable(PLAYERS, tuple(windows(3, 2)), np.ones((40, 6)))
    assert as_table([estimate(right)])["ci_holds_from"].to_pylist() == [None] * 3
