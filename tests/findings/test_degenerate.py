"""Runs that say nothing: all tied, all wrong, all right, one item, two. No sentence and no table says nan or inf."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.findings.comparing import agreement_lines, compare_runs
from lowmem_layers.findings.drivers import driver_lines, find_drivers
from lowmem_layers.findings.equivalence import equivalence_lines
from lowmem_layers.findings.paper import paper_table
from lowmem_layers.findings.power import foretell, power_lines, value_lines
from lowmem_layers.findings.rows import importance_rows, level_rows, text_rows

SAID = re.compile(r"(?<![a-z])-?(nan|inf)(?![a-z])", re.IGNORECASE)


@pytest.mark.parametrize("n_items", [1, 2, 12])
@pytest.mark.parametrize("gold", [0.0, 3.0, -3.0])
def test_no_sentence_and_no_table_says_nan(tmp_path, bench, engine, gold, n_items):
    """The answers never change: the gold choice is level with the others, ahead or behind."""

    class Still(engine):
        def _block(self, item, coalitions):
            block = np.full((len(coalitions), len(item.choices)), -5.0)
            block[:, item.gold] += gold
            return block

    made = bench(n_items=n_items, n_layers=2, engine=Still())
    run = run_study(StudySpec(max_removed=2, tasks=("one",)), tmp_path / "r", prepare=made.prepare)
    found = run.findings
    sentences = [*found.lines, *found.cautions, *found.perplexities, found.cut, found.verdict]
    for value in ("acc", "loglikelihood"):
        compared = compare_runs(run, run, value)
        sentences += agreement_lines(compared) + equivalence_lines(compared, 0.1)
        sentences += power_lines(foretell(run, value))
        if n_items > 1:
            sentences += driver_lines(find_drivers(run, value, None))
    sentences += value_lines(run)
    cells = [row for side in found.sides for row in importance_rows(side.overall, side.scale, side.unit)[1]]
    cells += level_rows(found.tasks)[1]
    if found.paper is not None:
        cells += [row for which in (1, 2, 3, 4) for row in text_rows(paper_table(found.paper, which))[1]]
    for text in [*filter(None, sentences), *(cell for row in cells for cell in row), *repr(run).splitlines()]:
        assert not SAID.search(text), text
