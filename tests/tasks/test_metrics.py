"""Values: against a second, slow implementation, and by hand at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowmem_layers.errors import UsageError
from lowmem_layers.tasks import VALUES, item_values
from lowmem_layers.tasks.metrics import METRICS, metric_named

NAN, INF = math.nan, math.inf


def one(row, gold, value, chars=None, n_bytes=None):
    chars = chars or [1] * len(row)
    return float(item_values([[row]], [gold], [chars], [n_bytes or chars], value)[0, 0])


def slow_kl(full, row):
    """Say the divergence by the textbook, with probabilities."""
    if any(map(math.isnan, [*full, *row])) or max(full) == -INF or max(row) == -INF:
        return NAN
    p, q = ([math.exp(x - max(of)) / sum(math.exp(y - max(of)) for y in of) for x in of] for of in (full, row))
    return -sum(a * (math.log(a / b) if b > 0 else INF) for a, b in zip(p, q, strict=True) if a > 0)


def slowly(row, gold, chars, n_bytes, value):
    """Say the same with plain Python, choice by choice."""
    n = len([c for c in chars if c])
    row, chars = row[:n], chars[:n]
    if value in ("acc", "acc_norm"):
        scores = [x / (c if value == "acc_norm" else 1) for x, c in zip(row, chars, strict=True)]
        known = [i for i, x in enumerate(scores) if not math.isnan(x)]
        return float(bool(known) and min(known, key=lambda i: (-scores[i], i)) == gold)
    if value == "loglikelihood":
        return row[gold]
    if value == "nll_per_byte":
        return row[gold] / n_bytes[gold]
    if value == "loglikelihood_per_char":
        return row[gold] / chars[gold]
    if any(map(math.isnan, row)):
        return NAN
    others = [x for i, x in enumerate(row) if i != gold]
    if value == "margin":
        return row[gold] - max(others)
    top = max(row)
    return NAN if math.isinf(top) else math.exp(row[gold] - top) / sum(math.exp(x - top) for x in row)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_values_equal_a_second_implementation(data):
    n_items, n_coalitions, n_choices = (data.draw(st.integers(2, 4)) for _ in range(3))
    numbers = st.floats(-50, 0) | st.sampled_from([NAN, -INF, -1.0])
    scores = data.draw(hnp.arrays(np.float64, (n_items, n_coalitions, n_choices), elements=numbers))
    counts = [data.draw(st.integers(2, n_choices)) for _ in range(n_items)]
    chars = np.array([[data.draw(st.integers(1, 9)) if j < n else 0 for j in range(n_choices)] for n in counts])
    for item, n in enumerate(counts):
        scores[item, :, n:] = NAN
    gold = [data.draw(st.integers(0, n - 1)) for n in counts]
    for value in (each for each in VALUES if not METRICS[each].needs_likeliest):
        fast = item_values(scores, gold, chars, 2 * chars, value)
        slow = [
            [
                slow_kl(scores[i, 0, : counts[i]].tolist(), scores[i, c, : counts[i]].tolist())
                if value == "kl"
                else slowly(scores[i, c].tolist(), gold[i], chars[i].tolist(), (2 * chars[i]).tolist(), value)
                for c in range(n_coalitions)
            ]
            for i in range(n_items)
        ]
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-12)


def test_the_second_implementation_tells_a_wrong_value():
    assert slowly([-1.0, -2.0], 0, [1, 1], [1, 1], "acc") == 1.0
    assert slowly([-1.0, -2.0], 1, [1, 1], [1, 1], "acc") == 0.0


def test_the_first_index_wins_ties():
    assert one([-1.0, -1.0, -1.0], 0, "acc") == 1.0
    assert one([-1.0, -1.0, -1.0], 1, "acc") == 0.0


def test_acc_norm_divides_by_characters():
    assert one([-4.0, -6.0], 1, "acc") == 0.0
    assert one([-4.0, -6.0], 1, "acc_norm", chars=[2, 4]) == 1.0


@pytest.mark.parametrize(
    ("row", "gold", "value", "expected"),
    [
        ([NAN, -INF], 1, "acc", 1.0),
        ([NAN, -INF], 0, "acc", 0.0),
        ([NAN, NAN], 0, "acc", 0.0),
        ([-INF, -INF], 0, "acc", 1.0),
        ([NAN, -1.0], 0, "loglikelihood", NAN),
        ([-INF, -1.0], 0, "loglikelihood", -INF),
        ([-INF, -1.0], 0, "margin", -INF),
        ([-INF, -1.0], 0, "probability", 0.0),
        ([-INF, -INF], 0, "margin", NAN),
        ([-INF, -INF], 0, "probability", NAN),
        ([-1.0, NAN], 0, "margin", NAN),
        ([-1.0, NAN], 0, "probability", NAN),
        ([-1.0, NAN], 0, "loglikelihood", -1.0),
        ([-1.0, -INF], 0, "probability", 1.0),
        ([-1.0, -3.0], 0, "margin", 2.0),
        ([0.0, 0.0, 0.0, 0.0], 2, "probability", 0.25),
    ],
)
def test_numbers_that_are_not_finite_have_one_answer(row, gold, value, expected):
    np.testing.assert_equal(one(row, gold, value), expected)


def test_length_normalised_values_divide_by_the_gold_answers_own_length():
    assert one([-10.0, -4.0], 0, "loglikelihood_per_char", chars=[4, 1], n_bytes=[5, 1]) == -2.5


def test_nll_per_byte_is_larger_where_the_text_is_likelier():
    assert one([-10.0], 0, "nll_per_byte", chars=[4], n_bytes=[5]) == -2.0


@pytest.mark.parametrize("value", ["acc", "acc_norm", "margin", "probability"])
def test_a_single_choice_cannot_be_compared(value):
    with pytest.raises(UsageError, match="compares choices"):
        one([-10.0], 0, value)


def test_an_unknown_value_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        one([-1.0, -2.0], 0, "accuracy")
    assert "acc_norm" in caught.value.hint


@pytest.mark.parametrize(
    ("gold", "chars"), [([2], [[1, 1, 0]]), ([3], [[1, 1, 1]]), ([-1], [[1, 1, 1]]), ([0, 1], [[1, 1, 1]])]
)
def test_a_gold_that_names_no_choice_is_refused(gold, chars):
    with pytest.raises(ValueError, match="gold"):
        item_values(np.zeros((1, 2, 3)), gold, chars, chars, "acc")


def test_lengths_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        item_values(np.zeros((1, 2, 3)), [0], [[1, 1]], [[1, 1]], "acc")


def test_no_items_give_no_values():
    assert item_values(np.zeros((0, 5, 2)), [], np.zeros((0, 2)), np.zeros((0, 2)), "acc").shape == (0, 5)


def test_every_value_has_one_row():
    assert tuple(METRICS) == VALUES
    assert all(metric_named(name).name == name for name in VALUES)
    assert [name for name, row in METRICS.items() if row.has_chance] == ["acc", "acc_norm"]
    units = {name: (row.scale, row.unit, row.level_unit) for name, row in METRICS.items()}
    assert units == {
        "acc": (100.0, "points", "%"),
        "acc_norm": (100.0, "points", "%"),
        "loglikelihood": (1.0, "nats", "nats"),
        "margin": (1.0, "nats", "nats"),
        "probability": (100.0, "points", "%"),
        "kl": (1.0, "nats", "nats"),
        "nll_per_byte": (1.0, "nats per byte", "nats per byte"),
        "loglikelihood_per_char": (1.0, "nats per character", "nats per character"),
        "greedy": (100.0, "points", "%"),
    }


def test_a_misspelt_metric_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="there is no value 'acc-norm'") as caught:
        metric_named("acc-norm")
    assert caught.value.hint.startswith("did you mean acc_norm? values: acc, ")


def test_the_divergence_compares_with_the_coalition_that_is_said_to_be_the_full_model():
    rows = np.log([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]])
    lengths = np.ones((1, 2), dtype=int)
    found = item_values(rows, [0], lengths, lengths, "kl", full=1)
    expected = [-(0.9 * math.log(0.9 / q) + 0.1 * math.log(0.1 / (1 - q))) for q in (0.5, 0.9, 0.2)]
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    assert found[0, 1] == 0.0


def test_a_continuation_is_greedy_where_no_other_token_is_likelier():
    scores = np.array(
        [[[-3.0, -3.0], [-3.0, -2.9]], [[NAN, NAN], [-INF, -1.0]]]
    )  # (items, coalitions, own and likeliest)
    found = item_values(scores, [0, 0], [[4, 0], [5, 0]], [[4, 0], [5, 0]], "greedy")
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert item_values(scores, [0, 0], [[4, 0], [5, 0]], [[4, 0], [5, 0]], "loglikelihood")[0].tolist() == [-3.0, -3.0]
    for value, chars in (("greedy", [[4, 5], [5, 1]]), ("acc", [[4, 0], [5, 0]])):  # one has choices, one has none
        with pytest.raises(UsageError):
            item_values(scores, [0, 0], chars, chars, value)
    with pytest.raises(UsageError, match="is not measured here"):
        item_values(scores[:, :, :1], [0, 0], [[4], [5]], [[4], [5]], "greedy")
