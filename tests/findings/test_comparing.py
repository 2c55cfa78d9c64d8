"""Runs side by side: whose items are the same, which estimator, what is refused, what is said of the differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import (
    agreement_lines,
    agreement_table,
    compare_runs,
    comparison_table,
    differences,
)
from lowmem_layers.findings.equivalence import equivalence_lines, with_equivalence
from lowmem_layers.findings.interactions import interaction_table
from lowmem_layers.findings.paper import paper_table, tables_of
from lowmem_layers.report.compared import _names


def make(tmp_path, bench, name, engine=None, model=None, **options):
    """Run a study of made-up numbers."""
    made = bench(n_items=12, n_layers=3)
    if engine is not None:
        made.engine = engine
    if model is not None:
        made.model = {"id": model, "dtype": "float32", "home": "ram"}
    return run_study(
        StudySpec(max_removed=options.pop("max_removed", 2), **options), tmp_path / name, prepare=made.prepare
    )


def test_tasks_are_paired_and_averaged(tmp_path, bench, engine):
    one = make(tmp_path, bench, "a", tasks=("one", "three"))
    two = make(tmp_path, bench, "b", engine(seed=1), tasks=("one", "three"))
    found = compare_runs(one, two, "loglikelihood")
    assert list(found) == ["one", "three", "all"]
    assert all(each.paired for each in found.values())
    mean = (found["one"].difference + found["three"].difference) / 2
    np.testing.assert_allclose(found["all"].difference, mean)
    by_hand = [one.importance("loglikelihood"), two.importance("loglikelihood")]
    rows = [np.array(table["value"])[np.array(table["task"]) == "all"] for table in by_hand]
    np.testing.assert_allclose(found["all"].value_a, rows[0])
    np.testing.assert_allclose(found["all"].difference, rows[0] - rows[1])
    assert comparison_table(found).num_rows == 18
    table = agreement_table(found)
    assert table["correction"].to_pylist() == ["holm"] * 3
    assert all("Holm, 95 %" in line for line in agreement_lines(found))


def test_common_items_are_compared_where_runs_overlap(tmp_path, bench, engine):
    whole = make(tmp_path, bench, "whole", tasks=("one",))
    part = make(tmp_path, bench, "part", engine(seed=1), tasks=("one",), limit=7)
    found = compare_runs(whole, part, "loglikelihood")["one"]
    assert found.paired
    assert found.n_items == (7, 7)
    assert "the 7 items that A's 12 and B's 7 have in common" in agreement_lines({"one": found})[0]
    few = make(tmp_path, bench, "few", engine(seed=1), tasks=("one",), limit=5)
    assert compare_runs(few, whole, "loglikelihood")["one"].n_items == (5, 5)


def test_one_task_against_another_is_never_paired(tmp_path, bench):
    """Items of different tasks may bear the same names (row numbers): they are still different items."""
    one, three = (make(tmp_path, bench, task, tasks=(task,), limit=8) for task in ("one", "three"))
    assert set(one.items()["item"].to_pylist()) == set(three.items()["item"].to_pylist())
    found = compare_runs(one, three, "loglikelihood")
    assert list(found) == ["one / three"]
    assert not found["one / three"].paired
    assert "not paired" in agreement_lines(found)[0]


def test_items_that_only_share_their_names_are_not_paired(tmp_path, bench, monkeypatch):
    one, two = (make(tmp_path, bench, name, tasks=("one",)) for name in "ab")
    changed = tuple(row._replace(gold=(row.gold + 1) % row.n_choices) for row in two.item_rows)
    monkeypatch.setattr(
        type(two), "item_rows", property(lambda run: changed if run.folder == two.folder else one.values.rows)
    )
    assert not compare_runs(one, two, "loglikelihood")["one"].paired


def test_removal_orders_are_compared_with_their_own_noise(tmp_path, bench, engine):
    options = {"coalitions": "permutations", "permutations": 6, "max_removed": None, "tasks": ("one",)}
    one = make(tmp_path, bench, "a", **options)
    two = make(tmp_path, bench, "b", engine(seed=1), **options)
    found = compare_runs(one, two, "loglikelihood")["one"]
    assert found.estimator == "permutation"
    expected = np.array(one.importance("loglikelihood")["value"]) - np.array(two.importance("loglikelihood")["value"])
    np.testing.assert_allclose(found.difference, expected)
    other = make(tmp_path, bench, "c", engine(seed=1), **options, seed=5)
    wider = compare_runs(one, other, "loglikelihood")["one"]
    reached = np.isfinite(found.ci.high)
    assert reached.any(), "a player that no walk reaches has no interval"
    assert np.mean((wider.ci.high - wider.ci.low)[reached]) > np.mean((found.ci.high - found.ci.low)[reached])
    same = compare_runs(one, one, "loglikelihood")["one"]
    np.testing.assert_allclose((same.ci.high - same.ci.low)[reached], 0.0)  # the same orders and items: nothing varies


def test_refusals_and_defaults(tmp_path, bench):
    windows = make(tmp_path, bench, "w", tasks=("one",))
    orders = make(tmp_path, bench, "p", tasks=("one",), coalitions="permutations", permutations=4, max_removed=None)
    with pytest.raises(UsageError, match="neighbourhood estimate, B for the permutation"):
        compare_runs(windows, orders)
    with pytest.raises(UsageError, match="no removal orders"):
        compare_runs(windows, orders, estimator="permutation")
    assert compare_runs(windows, orders, "loglikelihood", "ablation")["one"].paired
    with pytest.raises(UsageError, match="--correction"):
        compare_runs(windows, windows, correction="bonferroni")
    three = make(tmp_path, bench, "t", tasks=("one", "three"))
    five = make(tmp_path, bench, "f", tasks=("four", "five"))
    with pytest.raises(UsageError, match="no task in common"):
        compare_runs(three, five)
    exact = make(tmp_path, bench, "e", tasks=("one",), coalitions="all", max_removed=None)
    assert compare_runs(exact, exact, "loglikelihood")["one"].estimator == "shapley"


def test_what_differs_is_named(tmp_path, bench):
    one = make(tmp_path, bench, "a", tasks=("one",))
    assert differences(one, one) == []
    other = make(tmp_path, bench, "b", model="other", tasks=("one",), quant="4bit", bos="always", max_removed=1)
    found = "; ".join(differences(one, other))
    for words in ("model (tiny / other)", "quant (none / 4bit)", "max_removed (2 / 1)", "bos"):
        assert words in found


def test_runs_of_one_width_are_told_apart_by_their_packing(tmp_path, bench):
    one = make(tmp_path, bench, "a", tasks=("one",), quant="4bit")

    def packed(used, dtype):
        model = dataclasses.replace(one.manifest.model, quantisation={"asked": "4bit", "used": used}, dtype=dtype)
        return dataclasses.replace(one, manifest=dataclasses.replace(one.manifest, model=model))

    given, other = packed("GGUF Q4_1", "float32"), packed("nf4", "bfloat16")
    assert differences(given, other) == ["dtype (float32 / bfloat16)", "packing (GGUF Q4_1 / nf4)"]
    assert one.manifest.packing == "4bit"  # what was asked, where the record says no more
    assert _names(given, other) == ("A GGUF Q4_1", "B nf4")


def test_interactions_of_the_mean_over_tasks(tmp_path, bench):
    run = make(tmp_path, bench, "a", tasks=("one", "three"))
    rows = interaction_table(run, "loglikelihood").to_pylist()
    value = {(row["task"], row["first"], row["second"]): row["value"] for row in rows}
    assert value["all", "attn.0", "ffn.0"] == pytest.approx(
        (value["one", "attn.0", "ffn.0"] + value["three", "attn.0", "ffn.0"]) / 2
    )


def test_removal_orders_hold_windows_by_chance_only(tmp_path, bench):
    run = make(
        tmp_path, bench, "p", tasks=("one", "three"), coalitions="permutations", permutations=4, max_removed=None
    )
    with pytest.raises(UsageError, match="walked removal orders"):
        interaction_table(run)


def test_the_study_tables_join_runs_of_one_model(tmp_path, bench):
    name = "meta-llama/Meta-Llama-3-8B"
    one = make(tmp_path, bench, "a", model=name, tasks=("boolq",), quant="4bit")
    two = make(tmp_path, bench, "b", model=name, tasks=("piqa",), quant="4bit")
    rows = paper_table(tables_of([one, two]), 4).to_pylist()
    assert [(row["task"], row["published"]) for row in rows] == [
        ("boolq", pytest.approx(2.8)),
        ("piqa", pytest.approx(1.5)),
    ]
    (row,) = paper_table(tables_of([one, two]), 2).to_pylist()
    assert row["cornerstones"] == row["published"] == "attn.0, ffn.0, ffn.1"
    assert row["three_largest"].count(",") == 2
    other = make(tmp_path, bench, "c", model="mine", tasks=("boolq",))
    assert len(paper_table(tables_of([one, two, other]), 3).to_pylist()) == 2
    with pytest.raises(UsageError, match="two runs of meta-llama/Meta-Llama-3-8B 4bit float32 hold boolq"):
        tables_of([one, make(tmp_path, bench, "d", model=name, tasks=("boolq",), quant="4bit", limit=9)])


def test_the_study_tables_need_windows_of_sublayers(tmp_path, bench):
    grouped = make(tmp_path, bench, "g", tasks=("one",), players="decoder-layer")
    with pytest.raises(UsageError, match="no run of windows of sublayers"):
        tables_of([grouped])


def test_data_that_was_edited_is_refused_by_name(tmp_path, bench, monkeypatch):
    one, two = (make(tmp_path, bench, name, tasks=("one",)) for name in "ab")
    first, *rest = two.item_rows
    edited = (first._replace(chars=tuple(n + 1 for n in first.chars)), *rest)
    monkeypatch.setattr(
        type(two), "item_rows", property(lambda run: edited if run.folder == two.folder else one.values.rows)
    )
    with pytest.raises(UsageError, match="1 of 12 items of one have other choices or another gold answer in B: q0"):
        compare_runs(one, two, "loglikelihood")


def test_a_group_is_not_compared_with_a_sublayer_of_its_name(tmp_path, bench):
    group = make(tmp_path, bench, "a", tasks=("one",), players="attn.0=attn.0+ffn.0,ffn.1=ffn.1")
    alone = make(tmp_path, bench, "b", tasks=("one",), players="attn.0=attn.0,ffn.1=ffn.1")
    with pytest.raises(UsageError, match=r"attn.0 stands for attn.0\+ffn.0 in A and for attn.0 in B"):
        compare_runs(group, alone, "loglikelihood")
    assert compare_runs(group, group, "loglikelihood")


def test_no_sentence_says_nan(tmp_path, bench):
    run = make(tmp_path, bench, "a", tasks=("one",))
    for block in run.value_tables("loglikelihood"):
        block.values[:] = 1.0  # nothing differs: every ranking is all ties
    (line,) = agreement_lines(compare_runs(run, run, "loglikelihood"))
    assert "nan" not in line
    assert "no Spearman (all values of a run are tied, or one is unknown), no Kendall" in line


def test_what_is_certainly_the_same_is_said(tmp_path, bench, engine):
    one, two = make(tmp_path, bench, "a", tasks=("one",)), make(tmp_path, bench, "b", engine(seed=1), tasks=("one",))
    itself, other = compare_runs(one, one, "loglikelihood"), compare_runs(one, two, "loglikelihood")
    assert equivalence_lines(itself, 0.01) == [
        "one: all 6 differ by less than 0.01 (95 %, two one-sided tests, p <0.001)"
    ]
    table = with_equivalence(comparison_table(other), other, 1e-9)
    assert table["equivalent"].to_pylist() == ["false"] * 6
    assert table.column_names[-3:] == ["equivalent_within", "equivalence_p_adjusted", "equivalent"]
    assert "not certain that all 6 differ by less than 1e-09" in equivalence_lines(other, 1e-9)[0]
    far = float(np.abs([other["one"].ci.low, other["one"].ci.high]).max()) * 10
    assert "all 6 differ by less than" in equivalence_lines(other, far)[0]
    with pytest.raises(UsageError, match="proves nothing"):
        equivalence_lines(other, 0.0)
