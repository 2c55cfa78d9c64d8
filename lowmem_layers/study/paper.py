"""The study's tables 1 to 4 for any set of runs, the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.paper_tables import PaperTables, paper_tables
from lowmem_layers.study.opened import Run

NUMBERS = (1, 2, 3, 4)


def tables_of(runs: Sequence[Run]) -> PaperTables:
    """Compute the tables; runs are named by their model, and by their quantisation where it is not `none`.

    Raises:
        UsageError: two runs of the same name, or a metric that is no accuracy.
    """
    named = {}
    for run in runs:
        name = _name(run)
        if name in named:
            raise UsageError(f"two runs are of {name}", "give one run a model and quantisation")
        named[name] = {table.task: table for table in run.value_tables()}
    return paper_tables(named)


def paper_table(found: PaperTables, number: int) -> pa.Table:
    """Lay out one of the four tables; shares and drops in per cent.

    Raises:
        UsageError: there is no such table.
    """
    if number not in NUMBERS:
        raise UsageError(f"there is no table {number}", "the study has tables 1, 2, 3 and 4")
    return pa.Table.from_pylist((_table1, _table2, _table3, _table4)[number - 1](found))


def _name(run: Run) -> str:
    quant = run.manifest.resolved.get("quant")
    model = str(run.manifest.model.get("id"))
    return model if quant in (None, "none") else f"{model} {quant}"


def _table1(found: PaperTables) -> list[dict[str, object]]:
    return [
        {
            "model": row.model,
            "top_share": 100 * row.top_share,
            "others_share": 100 * row.others_share,
            "published_top_share": _per_cent(row.published_top_share),
        }
        for row in found.table1
    ]


def _table2(found: PaperTables) -> list[dict[str, object]]:
    return [
        {
            "model": row.model,
            "cornerstones": ", ".join(row.cornerstones),
            "source": row.source,
            "published": ", ".join(row.published or ()),
        }
        for row in found.table2
    ]


def _table3(found: PaperTables) -> list[dict[str, object]]:
    return [
        {
            "model": row.model,
            "cornerstone_drop": 100 * row.cornerstone_drop,
            "other_drop": 100 * row.other_drop,
            "published_cornerstone_drop": _per_cent(row.published[0] if row.published else None),
            "published_other_drop": _per_cent(row.published[1] if row.published else None),
        }
        for row in found.table3
    ]


def _table4(found: PaperTables) -> list[dict[str, object]]:
    return [
        {"task": row.task, "model": row.model, "drop": 100 * row.drop, "published": _per_cent(row.published)}
        for row in found.table4
    ]


def _per_cent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
