"""Stopping early: the e-process, the statements, and how rarely they are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from lowmem_layers.errors import UsageError
from lowmem_layers.game import Statement, ValueTable, decide, item_order, parse_statement, single_removals
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.betting import log_capital, stream_of
from lowmem_layers.game.uncertainty.errors import contributions, influence_of
from lowmem_layers.game.uncertainty.skewness import cautious_t, corrected_t, incautious_t, uncorrected_t
from lowmem_layers.game.uncertainty.stopping import EFFECT_VARIANCE, anytime_radius, log_evidence
from lowmem_layers.game.values.table import Planned


def drops_table(drops, clusters=None):
    """Make a table whose per-item ablation drops are these. Shapes: (items, players)."""
    values = np.concatenate([np.zeros((len(drops), 1)), -drops], axis=1)
    names = tuple(f"p{i}" for i in range(drops.shape[1]))
    return ValueTable(names, tuple(single_removals(drops.shape[1])), values, clusters)


def gaussian(means, n_items, seed):
    return drops_table(np.array(means) + np.random.default_rng(seed).normal(size=(n_items, len(means))))


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        ("top3", Statement("top", top_k=3)),
        ("top=5", Statement("top", top_k=5)),
        ("rank", Statement("rank")),
        ("ci=0.01", Statement("ci", half_width=0.01)),
        ("ci=.5", Statement("ci", half_width=0.5)),
    ],
)
def test_statements(text, statement):
    assert parse_statement(text) == statement


@pytest.mark.parametrize("text", ["top", "top0", "top=-1", "ci=0", "ci=", "ci=-1", "ranks", ""])
def test_bad_statements(text):
    with pytest.raises(UsageError, match="no statement"):
        parse_statement(text)


def test_evidence_against_numerical_integration():
    """The likelihood ratio of the t statistic, integrated over effect sizes: noncentral t against central t."""
    for n, t in ((12, 0.3), (30, 2.0), (30, -4.0)):
        prior = stats.norm(0, np.sqrt(EFFECT_VARIANCE))

        def density(delta, n=n, t=t, prior=prior):
            return stats.nct.pdf(t, n - 1, delta * np.sqrt(n)) * prior.pdf(delta)

        mixed = integrate.quad(density, -3, 3, limit=200)[0]
        expected = np.log(mixed / stats.t.pdf(t, n - 1))
        assert log_evidence(np.array(t), np.array(n - 1.0)) == pytest.approx(expected, abs=1e-5)


def test_radius_inverts_the_evidence():
    half = np.random.default_rng(0).normal(size=(30, 3))
    estimate = influence_of(np.concatenate([half, -half]), np.arange(60))  # no skewness
    radius = anytime_radius(estimate, 0.01)
    evidence = log_evidence(radius / estimate.standard_error, estimate.dof)
    np.testing.assert_allclose(evidence, np.log(100.0), rtol=1e-4)
    skewed = influence_of(np.random.default_rng(0).exponential(size=(60, 3)), np.arange(60))
    assert (anytime_radius(skewed, 0.01) / skewed.standard_error > radius / estimate.standard_error).all()
    few = influence_of(half[:3], np.arange(3))
    assert np.isinf(anytime_radius(few, 0.01)).all()


NOISES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(3, size),
    "skewed": lambda rng, size: rng.gamma(0.5, 2.0, size) - 1.0,
    "log-normal": lambda rng, size: rng.lognormal(0.0, 1.0, size) - np.exp(0.5),
    "rare changes": lambda rng, size: (rng.random(size) < 0.03) * 1.0 - (rng.random(size) < 0.03),
}


@pytest.mark.parametrize("noise", NOISES)
def test_no_difference_is_rarely_declared_at_any_time(noise):
    """Two players without a gap, a look after every item up to 600: at most 5 % are ever ranked."""
    gaps = NOISES[noise](np.random.default_rng(0), (1000, 600))
    n = np.arange(1, 601)
    first, second, third = (np.cumsum(gaps**k, axis=1) / n for k in (1, 2, 3))
    variance = np.maximum(second - first**2, 1e-12)
    skewness = (third - 3 * first * second + 2 * first**3) / variance**1.5 / np.sqrt(n)
    t = np.where(variance > 1e-9, first / np.sqrt(variance / np.maximum(n - 1, 1)), 0.0)
    evidence = log_evidence(cautious_t(np.abs(t), np.sign(t) * skewness)[:, 29:], n[29:] - 1.0)
    wrong = (evidence > np.log(20.0)).any(axis=1).mean()
    assert wrong <= 0.05
    if noise == "log-normal":  # without the caution it would fail: the test can tell
        blind = log_evidence(t[:, 29:], n[29:] - 1.0)
        assert (blind > np.log(20.0)).any(axis=1).mean() > 0.08


def test_skewness_corrections_invert_and_never_embolden():
    t, skewness = np.array([0.0, 1.0, 3.0, 8.0]), np.array([-0.3, 0.2, -0.1, -0.05])
    np.testing.assert_allclose(uncorrected_t(corrected_t(t, skewness), skewness), t, atol=1e-6)
    assert (cautious_t(t, skewness) <= t).all()
    target = np.array([0.5, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(cautious_t(incautious_t(target, skewness), skewness), target, atol=1e-4)
    strong = cautious_t(np.array([20.0]), np.array([-0.5]))
    assert strong[0] == 20.0, "twenty standard errors are no accident of skewed items"
    assert cautious_t(np.array([4.0]), np.array([-0.5]))[0] < 2.0
    assert incautious_t(np.array([5.0]), np.array([-1.0]))[0] > 5.0


def test_the_rule_is_that_process_for_two_players():
    table = gaussian([1.0, 0.2], 80, seed=1)
    gap = -(table.values[:, 1] - table.values[:, 2])
    t = gap.mean() / (gap.std(ddof=1) / np.sqrt(80))
    skewness = ((gap - gap.mean()) ** 3).sum() / ((gap - gap.mean()) ** 2).sum() ** 1.5
    expected = log_evidence(cautious_t(np.array(t), np.array(skewness)), np.array(79.0))
    decision = decide(table, "top=1")
    assert decision.holds == bool(expected > np.log(20.0))
    assert f"{float(expected):.2f}" in decision.detail


def test_top_three_of_accuracies_is_found_and_never_wrong_here():
    found = 0
    for seed in range(15):
        rng = np.random.default_rng(seed)
        lost = (rng.random((300, 8)) < np.array([0.6, 0.5, 0.5, 0.05, 0.05, 0.02, 0.0, 0.0])).astype(float)
        table = drops_table(lost)
        table = ValueTable(table.players, table.coalitions, table.values + 1.0)
        assert table.is_binary
        for n in range(30, 301, 30):
            decision = decide(table.take_items(range(n)), "top3")
            if decision.holds:
                found += 1
                assert "p0" in decision.text
                assert "p1" in decision.text
                assert "p2" in decision.text
                assert f"{n} items" in decision.text
                break
    assert found >= 14


def test_ties_at_the_edge_are_not_decided():
    for seed in range(20):
        table = gaussian([3.0, 2.0, 1.0, 1.0, 0.0], 200, seed)
        assert not any(decide(table.take_items(range(n)), "top3").holds for n in range(40, 201, 20))


def test_rank_and_width():
    table = gaussian([3.0, 2.0, 1.0, 0.0], 300, seed=0)
    decision = decide(table, "rank")
    assert decision.holds
    assert "p0, p1, p2, p3" in decision.text
    assert not decide(gaussian([1.0, 1.0], 300, seed=1), "rank").holds
    assert decide(table, "ci=0.5").holds
    narrow = decide(table, "ci=0.01")
    assert not narrow.holds
    assert "±" in narrow.detail


def test_widths_hold_at_any_time():
    missed = 0
    for seed in range(200):
        rows = np.random.default_rng(seed).normal(size=(200, 3))
        looks = [influence_of(rows[:n], np.arange(n)) for n in range(40, 201, 20)]
        missed += any((np.abs(look.value) > anytime_radius(look, 0.05 / 3)).any() for look in looks)
    assert missed / 200 <= 0.05


def test_the_mean_over_tasks_and_clusters():
    first, second = gaussian([2.0, 0.0], 60, 0), gaussian([0.0, 0.5], 60, 1)
    assert decide([first, second], "top=1").holds
    same = ValueTable(first.players, first.coalitions, first.values, np.repeat(np.arange(5), 12))
    assert not decide(same, "top=1").holds  # five clusters
    assert "fewer than" in decide(same, "top=1").detail


def test_non_finite_and_impossible():
    table = gaussian([2.0, 0.0], 30, 0)
    spoilt = table.values.copy()
    spoilt[3, 1] = np.nan
    decision = decide(ValueTable(table.players, table.coalitions, spoilt), "top=1")
    assert not decision.holds
    assert "p0" in decision.detail
    with pytest.raises(UsageError, match="top 2 of 2"):
        decide(table, "top=2")


def test_constant_tables_prove_nothing():
    assert not decide(drops_table(np.tile([1.0, 0.0], (50, 1))), "top=1").holds
    assert not decide(drops_table(np.zeros((50, 2))), "rank").holds


def test_item_order_is_a_seeded_shuffle():
    assert sorted(item_order(range(50), 1)) == list(range(50))
    assert item_order(range(50), 1) == item_order(range(50), 1) != item_order(range(50), 2)


def test_every_order_of_clusters_is_equally_likely_whatever_their_sizes():
    clusters = ["large"] * 8 + ["pair"] * 2 + ["alone"]
    orders = []
    for seed in range(3000):
        order = item_order(clusters, seed)
        assert sorted(order) == list(range(11))
        orders.append(tuple(dict.fromkeys(clusters[place] for place in order)))
        assert [name for name in orders[-1] for _ in range(clusters.count(name))] == [clusters[i] for i in order]
    counts = [orders.count(each) for each in set(orders)]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_large_clusters_that_prefer_another_sublayer_do_not_decide_alone():
    """300 single items prefer p0, 20 clusters of 15 prefer p1 a little less: p0 is on top of all 600 items."""
    clusters = [f"s{i}" for i in range(300)] + [f"c{i // 15}" for i in range(300)]
    means = np.repeat([[1.0, 0.0], [0.0, 0.8]], 300, axis=0)
    wrong = 0
    for seed in range(60):
        order = item_order(clusters, seed)
        drops = (means + np.random.default_rng(seed).normal(size=means.shape))[order]
        codes = np.unique([clusters[place] for place in order], return_inverse=True)[1]
        for n_items in range(60, 601, 60):
            decision = decide(drops_table(drops[:n_items], codes[:n_items]), "top=1")
            if decision.holds:
                wrong += "p1" in decision.text
                break
    assert wrong <= 3


def rare_against_steady(seed, n_items=300, rate=0.02, **options):
    """Make two sublayers of the same drop: one loses a little on every item, the other 0.9 on a few."""
    rng = np.random.default_rng(seed)
    losses = np.stack([0.9 * rate * rng.uniform(0.7, 1.3, n_items), 0.9 * (rng.random(n_items) < rate)], axis=1)
    values = 0.95 - np.concatenate([np.zeros((n_items, 1)), losses], axis=1)
    return ValueTable(("steady", "rare"), tuple(single_removals(2)), values, **options)


def stated(table):
    return any(decide(table.take_items(range(n)), "top=1").holds for n in range(30, table.n_items + 1, 30))


def test_rare_large_losses_of_bounded_values_do_not_mislead():
    wrong = [stated(rare_against_steady(seed, in_unit_interval=True)) for seed in range(60)]
    blind = [stated(rare_against_steady(seed)) for seed in range(60)]
    assert np.mean(wrong) <= 0.05
    assert np.mean(blind) > 0.3, "the rule for unbounded values cannot know: its statements say what they assume"


def test_a_statement_about_nats_says_what_it_assumes():
    said = decide(gaussian([2.0, 0.0], 300, 0), "top=1").text
    assert "if no rare items lose far more than these" in said
    assert "p0" in said.split("carry")[1]
    bounded = rare_against_steady(0, rate=0.5, n_items=300, in_unit_interval=True)
    bounded = ValueTable(bounded.players, bounded.coalitions, bounded.values - [0, 0.4, 0], in_unit_interval=True)
    assert "rare items" not in decide(bounded, "top=1").text
    assert decide(bounded, "top=1").holds


def test_bets_never_gain_on_average_without_a_difference():
    """The capital of every share, averaged over a fair two-point gamble, stays 1: the expectation is exact."""
    for p, loss in ((0.5, 1.0), (0.02, 1.0), (0.2, 0.5)):  # x = −loss with probability p, else what makes the mean 0
        gain = p * loss / (1.0 - p)
        mean = p * np.exp(log_capital(np.array([[-loss]]))) + (1 - p) * np.exp(log_capital(np.array([[gain]])))
        assert mean[0] == pytest.approx(1.0)


def test_the_bound_of_a_cluster_is_that_of_the_largest_one_to_come():
    table = rare_against_steady(0, rate=0.5, n_items=200, in_unit_interval=True)
    weights = estimator_weights("ablation", table.coalitions, table.players)
    plain = stream_of([table], [weights]).evidence_above(0, [1])
    planned = replace(table, planned=Planned(400, 5))
    np.testing.assert_array_less(np.abs(stream_of([planned], [weights]).evidence_above(0, [1])), np.abs(plain) + 5)
    assert stream_of([planned], [weights]).largest == pytest.approx([5.0])


def test_tasks_of_unequal_sizes_are_one_stream_of_their_mean():
    tables = [
        replace(rare_against_steady(seed, n, rate=0.5), in_unit_interval=True, planned=Planned(2 * n, 1))
        for seed, n in ((0, 100), (1, 300))
    ]
    weights = [estimator_weights("ablation", t.coalitions, t.players) for t in tables]
    stream = stream_of(tables, weights)
    mean = np.mean(
        [influence_of(contributions(t, w), t.cluster_codes).value for t, w in zip(tables, weights, strict=True)], axis=0
    )
    np.testing.assert_allclose(stream.sums.sum(axis=0) / stream.sizes.sum(), mean)


def test_the_radius_of_bets_is_where_the_evidence_suffices():
    table = rare_against_steady(0, rate=0.3, n_items=500, in_unit_interval=True)
    weights = estimator_weights("ablation", table.coalitions, table.players)
    stream, value = stream_of([table], [weights]), influence_of(contributions(table, weights), np.arange(500)).value
    radius = stream.radius(1, float(value[1]), np.log(40.0))
    for factor, enough in ((1.01, True), (0.98, False)):
        evidence = stream.evidence_within(value - factor * radius, value + factor * radius)[1]
        assert bool(evidence > np.log(40.0)) is enough
    assert 0.03 < radius < 0.2
