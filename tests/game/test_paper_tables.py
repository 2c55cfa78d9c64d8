"""Tables 1 to 4: definitions by hand, published numbers beside them."""

from __future__ import annotations

import numpy as np
import pytest

from lowmem_layers.errors import UsageError
from lowmem_layers.game import ValueTable, paper_tables, single_removals
from lowmem_layers.game.answers.paper_tables import PUBLISHED_OTHER_DROPS, clipped_drops, paper_shares, published_model

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
