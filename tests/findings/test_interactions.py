"""Interactions as a table: what lies between a pair, and whether a task's floor may look like synergy."""

from __future__ import annotations

from dataclasses import replace

from lowmem_layers import run_study
from lowmem_layers.findings.findings import coalition_means
from lowmem_layers.findings.interactions import interaction_table


def test_a_pair_says_what_is_gone_between_it_and_whether_one_loss_reaches_chance(tmp_path, bench, spec):
    run = run_study(replace(spec, max_removed=3), tmp_path / "r", prepare=bench().prepare)
    rows = interaction_table(run).to_pylist()
    between = {(row["first"], row["second"]): row["given_removed"] for row in rows}
    assert between["attn.0", "ffn.0"] == ""
    assert between["attn.0", "attn.1"] == "ffn.0"
    table = next(table for table in run.value_tables() if table.task == "three")
    chance = run.chance("three")
    for row in rows:
        if row["task"] == "three" and (row["first"], row["second"]) == ("attn.0", "attn.1"):
            low = coalition_means(table, [(0, 1), (1, 2)]).ci.low
            assert row["saturated"] == str(bool((low <= chance).any())).lower()
    assert {row["saturated"] for row in interaction_table(run, "loglikelihood").to_pylist()} == {"false"}
