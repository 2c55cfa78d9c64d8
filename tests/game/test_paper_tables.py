"""Tables 1 to 4: definitions by hand, published numbers beside them."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, paper_tables, single_removals, windows
from lowmem_layers.game.answers.paper_intervals import table_intervals
from lowmem_layers.game.answers.paper_tables import (
    PUBLISHED_OTHER_DROPS,
    clipped_drops,
    code_values,
    paper_shares,
    published_model,
)

NAMES = ("attn.0", "ffn.0", "attn.1", "ffn.1")


def table(full, singles, names=NAMES):
    return ValueTable(names, tuple(single_removals(len(names))), np.array([[full, *singles]]))


ARC = table(0.8, [0.3, 0.4, 0.6, 0.9])  # drops 0.5, 0.4, 0.2, −0.1
PIQA = table(0.7, [0.5, 0.7, 0.60003, 0.69996])  # drops 0.2, 0, 0.09997, 0.00004


def test_by_hand():
    tables = paper_tables({"Meta-Llama-3-8B": {"arc_easy": ARC, "piqa": PIQA}})
    # Shares: (0.5, 0.4, 0.2, 0)/1.1; rounded to 4 decimals (0.2, 0, 0.1, 0)/0.3. Cornerstones attn.0, ffn.0, ffn.1.
    others = (0.2 / 1.1 + 0.1 / 0.3) / 2
    (row1,), (row2,), (row3,) = tables.table1, tables.table2, tables.table3
    assert row1.others_share == pytest.approx(others)
    assert row1.top_share == pytest.approx(1 - others)
    assert row1.published_top_share == 0.291
    assert row2.cornerstones == row2.published == ("attn.0", "ffn.0", "ffn.1")
    assert row2.source == "published"
    assert row2.largest == ("attn.0", "ffn.0", "attn.1"), "what was measured stands beside the published list"
    assert row3.cornerstone_drop == pytest.approx(((0.5 + 0.4 + 0) / 3 + (0.2 + 0 + 0.00004) / 3) / 2)
    assert row3.other_drop == pytest.approx((0.2 + 0.09997) / 2)
    assert row3.published == (0.293, 0.016)
    assert [(row.task, row.published) for row in tables.table4] == [("arc_easy", 0.016), ("piqa", 0.015)]
    assert tables.table4[1].drop == pytest.approx(0.09997)


def test_clipping_and_rounding():
    np.testing.assert_allclose(clipped_drops(ARC), [0.5, 0.4, 0.2, 0.0])
    np.testing.assert_allclose(paper_shares([PIQA]), [2 / 3, 0, 1 / 3, 0])


def test_an_unknown_model_gets_its_own_top_three():
    tables = paper_tables({"mine": {"arc_easy": ARC}})
    assert tables.table2[0].cornerstones == ("attn.0", "ffn.0", "attn.1")
    assert tables.table2[0].source == "three largest mean shares"
    assert tables.table1[0].published_top_share is tables.table3[0].published is tables.table4[0].published is None
    given = paper_tables({"mine": {"arc_easy": ARC}}, cornerstones={"mine": ["ffn.1"]})
    assert given.table3[0].cornerstone_drop == 0.0
    assert given.table2[0].source == "given"


@pytest.mark.parametrize(
    ("label", "model"),
    [
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B"),
        ("meta-llama/Meta-Llama-3-70B", "Llama-3-70B"),
        ("mistralai/Mixtral-8x7B-v0.1", "Mixtral-8x7B"),
        ("Mixtral-8x7B", "Mixtral-8x7B"),
        ("meta-llama/Meta-Llama-3-8B 4bit", "Llama-3-8B"),
        ("models/Meta-Llama-3-8B.Q4_K_M.gguf", "Llama-3-8B"),
        ("Mixtral-8x7B-v0.1-GPTQ 4bit bfloat16", "Mixtral-8x7B"),
        ("Llama-3-70B float32", "Llama-3-70B"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("meta-llama/Meta-Llama-3-8B-Instruct 4bit", None),
        ("meta-llama/Llama-3.1-8B", None),
        *(
            (f"/some where/Meta-Llama-3-8B {packing}", "Llama-3-8B")
            for packing in (
                "nf4",
                "int8",
                "GGUF Q4_K and others",
                "GPTQ 4-bit",
                "AWQ 4-bit",
                "bitsandbytes nf4",
                "bitsandbytes int8",
                "HQQ 4-bit",
                "FP8 blocks",
                "MXFP4",
                "torchao Int4, Int8",
                "compressed-tensors W4/8A16 int",
                "modelopt NVFP4",
            )
        ),
        ("Meta-Llama-3-8B-Instruct nf4", None),
        ("Meta-Llama-3-8B tuned nf4", None),
    ],
)
def test_published_models_are_recognised(label, model):
    assert published_model(label) == model


def test_refusals():
    with pytest.raises(UsageError, match="no sublayer"):
        paper_tables({"mine": {"arc_easy": ARC}}, cornerstones={"mine": ["moe.0"]})
    with pytest.raises(UsageError, match="0 sets of players"):
        paper_tables({"mine": {}})
    with pytest.raises(UsageError, match="2 sets of players"):
        paper_tables({"mine": {"a": ARC, "b": table(1.0, [1, 1], NAMES[:2])}})


def test_non_finite_values_are_not_clipped_away():
    spoilt = table(0.8, [0.3, np.nan, 0.6, 0.9])
    np.testing.assert_array_equal(np.isnan(clipped_drops(spoilt)), [False, True, False, False])
    assert np.isnan(paper_tables({"mine": {"a": spoilt}}, cornerstones={"mine": ["ffn.0"]}).table3[0].cornerstone_drop)


def test_without_shares_there_is_no_top_three():
    for unknown in (table(0.5, [0.5, 0.6, 0.7, 0.5]), table(0.8, [0.3, np.nan, 0.6, 0.9])):
        tables = paper_tables({"mine": {"a": ARC, "b": unknown}})
        assert tables.table2[0].cornerstones == tables.table2[0].largest == ()
        assert tables.table2[0].source == "none: no share is known"
        (one,), (three,), four = tables.table1, tables.table3, tables.table4
        numbers = [
            one.top_share,
            one.others_share,
            three.cornerstone_drop,
            three.other_drop,
            *(row.drop for row in four),
        ]
        assert np.isnan(numbers).all()


def test_the_published_table_is_complete():
    assert len(PUBLISHED_OTHER_DROPS) == 6
    assert all(len(row) == 3 for row in PUBLISHED_OTHER_DROPS.values())


def by_the_code(full, removed, n_players, largest):
    """Estimate as the authors' code is described: single removal, then windows from both ends, one plain mean."""
    look_up = {(): full, **{key: float(np.round(value, 4)) for key, value in removed.items()}}
    found = []
    for player in range(n_players):
        terms = []
        for size in range(1, largest + 1):
            for first in dict.fromkeys((player, player - size + 1)):
                window = tuple(range(first, first + size))
                if first >= 0 and window[-1] < n_players:
                    rest = window[1:] if first == player else window[:-1]
                    terms.append(look_up[rest] - look_up[window])
        found.append(sum(terms) / len(terms))
    return np.array(found)


@pytest.mark.parametrize("n_items", [7, 300, 1000])
def test_the_authors_code_to_its_last_digit(n_items):
    """Thirds of accuracies show it: without the rounding 7 items give other shares in the third decimal."""
    rng, names = np.random.default_rng(n_items), tuple(f"p{i}" for i in range(9))
    coalitions = tuple(windows(9, 4))
    values = (rng.random((n_items, len(coalitions))) < np.array([0.9 - 0.12 * len(c) for c in coalitions])).astype(
        float
    )
    of_run, means = ValueTable(names, coalitions, values), values.mean(axis=0)
    expected = by_the_code(means[0], dict(zip(coalitions[1:], means[1:], strict=True)), 9, 3)
    np.testing.assert_array_equal(code_values(of_run), expected)
    clipped = np.maximum(np.round(expected, 4), 0.0)
    np.testing.assert_array_equal(paper_shares([of_run], 3, as_code=True), clipped / clipped.sum())
    drops = means[0] - np.round([means[coalitions.index((p,))] for p in range(9)], 4)
    np.testing.assert_array_equal(clipped_drops(of_run, as_code=True), np.maximum(drops, 0.0))
    assert (clipped_drops(of_run, as_code=True) != clipped_drops(of_run)).any() == (n_items != 1000)


def test_halves_of_a_fourth_decimal_are_rounded_as_the_code_rounds_them():
    """The second sublayer has four terms: of thousandths, every fourth of its estimates lies halfway."""
    coalitions = tuple(windows(4, 3))
    rng = np.random.default_rng(0)
    for _ in range(50):
        right = rng.integers(200, 900, len(coalitions))
        values = (np.arange(1000)[:, None] < right).astype(float)
        of_run, means = ValueTable(NAMES, coalitions, values), values.mean(axis=0)
        expected = by_the_code(means[0], dict(zip(coalitions[1:], means[1:], strict=True)), 4, 3)
        np.testing.assert_array_equal(np.round(code_values(of_run), 4), np.round(expected, 4))


def noisy(n_items, seed, loss):
    rng, n = np.random.default_rng(seed), len(loss)
    right = rng.random((n_items, 1)) < 0.9
    kept = rng.random((n_items, n)) >= loss
    values = np.concatenate([right, right & kept], axis=1).astype(float)
    return ValueTable(tuple(f"p{i}" for i in range(n)), tuple(single_removals(n)), values)


def test_intervals_hold_the_truth_where_the_list_was_chosen_by_the_same_items():
    """Thirty sublayers lose 2 % each: the three that lost the most by chance lose 2 % on other items."""
    hits, plug_in = [], []
    for seed in range(60):
        table = noisy(150, seed, np.full(30, 0.02 / 0.9))
        share = paper_shares([table])
        top = np.isin(np.arange(30), np.argsort(-share)[:3])
        found = table_intervals([table], top, selected=True)
        cis = (found.top_share, 0.1), (found.cornerstone_drop, 0.02), (found.other_drop, 0.02), (found.by_task[0], 0.02)
        hits.append([ci.low <= truth <= ci.high for ci, truth in cis])
        plug_in.append(clipped_drops(table)[top].mean())
        assert found.cornerstone_drop.low <= plug_in[-1] <= found.cornerstone_drop.high
        assert found.top_share.low <= share[top].sum() <= found.top_share.high
    assert np.mean(plug_in) > 0.035, "chosen by chance, they look as if they lost twice as much"
    assert np.mean(hits, axis=0).min() >= 0.93


def test_intervals_of_a_list_that_was_given():
    loss, top = np.array([0.5, 0.3, *[0.01] * 18]), np.arange(20) < 2
    hits, widths = [], []
    for seed in range(60):
        tasks = [noisy(150, seed, loss), noisy(100, 1000 + seed, loss)]
        found = table_intervals(tasks, top, selected=False)
        cis = ((found.cornerstone_drop, 0.36), (found.other_drop, 0.009), (found.top_share, 0.8 / 0.98))
        hits.append([ci.low <= truth <= ci.high for ci, truth in cis])
        widths.append(found.cornerstone_drop.high - found.cornerstone_drop.low)
    assert np.mean(hits, axis=0).min() >= 0.9
    assert np.mean(widths) < 0.15


def test_tables_carry_their_intervals_and_who_is_certain():
    loss = np.array([0.5, 0.3, *[0.01] * 8])
    tables = paper_tables({"mine": {"a": noisy(150, 0, loss), "b": noisy(100, 1, loss)}})
    (one,), (two,), (three,) = tables.table1, tables.table2, tables.table3
    assert one.top_ci.low < one.top_share < one.top_ci.high
    assert three.cornerstone_ci.low < three.cornerstone_drop < three.cornerstone_ci.high
    assert three.other_ci.low < three.other_drop < three.other_ci.high
    assert all(row.ci.low < row.drop < row.ci.high for row in tables.table4)
    assert two.certain[:2] == ("p0", "p1")
    single = paper_tables({"mine": {"a": ARC}}).table3[0]
    assert np.isnan([single.cornerstone_ci.low, single.other_ci.high]).all(), "one item says nothing of its spread"


def test_no_drop_of_an_accuracy_is_larger_than_one():
    """Seven items and a list chosen out of many: Student's interval alone would reach beyond what a drop can be."""
    table = noisy(7, 0, np.full(30, 0.3))
    top = np.arange(30) < 3
    found = table_intervals([table, noisy(7, 1, np.full(30, 0.3))], top, selected=True)
    for ci in (found.cornerstone_drop, found.other_drop, *found.by_task):
        assert 0.0 <= ci.low < ci.high <= 1.0
    assert found.cornerstone_drop.high == 1.0
