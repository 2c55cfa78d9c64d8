"""The study's tables 1 to 4 for any set of runs, the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.paper_tables import PaperTables, paper_tables
from lowmem_layers.game.values.table import ValueTable

NUMBERS = (1, 2, 3, 4)


def tables_of(runs: Sequence[Run]) -> PaperTables:
    """Compute the tables; runs are named by their model, and by their quantisation where it is not `none`.

    Runs of one name that hold different tasks are one model's; where they hold the same task they are told apart by
    what they compute in.

    Raises:
        UsageError: two runs of the same name and task, or a metric that is no accuracy.
    """
    wide = _clash(runs)
    named: dict[str, dict[str, ValueTable]] = {}
    for run in runs:
        name = _name(run, with_dtype=_name(run) in wide)
        tasks = named.setdefault(name, {})
        for table in _accuracies(run):
            if table.task in tasks:
                raise UsageError(
                    f"two runs of {name} hold {table.task}", "give one run a model, quantisation, dtype and task"
                )
            tasks[table.task] = table
    return paper_tables(named)


def _clash(runs: Sequence[Run]) -> set[str]:
    """Name the models of which two runs hold the same task."""
    seen: set[tuple[str, str]] = set()
    found = set()
    for run in runs:
        pairs = {(_name(run), task) for task in run.tasks}
        found |= {name for name, _ in seen & pairs}
        seen |= pairs
    return found


def _accuracies(run: Run) -> list[ValueTable]:
    game = run.manifest.design
    if game.coalitions != "windows" or game.grouping is not None:
        raise UsageError(
            f"{run.folder} is no run of windows of sublayers", "the study's tables need --coalitions windows, no groups"
        )
    for task in run.tasks:
        if run.metric(task) not in ("acc", "acc_norm"):
            raise UsageError(
                f"{run.folder}: {task} is judged by {run.metric(task)}", "the study's tables are of accuracies"
            )
    return run.value_tables()


def paper_table(found: PaperTables, number: int) -> pa.Table:
    """Lay out one of the four tables; shares and drops in per cent.

    Raises:
        UsageError: there is no such table.
    """
    if number not in NUMBERS:
        raise UsageError(f"there is no table {number}", "the study has tables 1, 2, 3 and 4")
    return pa.Table.from_pylist((_table1, _table2, _table3, _table4)[number - 1](found))


def _name(run: Run, *, with_dtype: bool = False) -> str:
    parts = [run.manifest.model.id]
    if run.manifest.resolved.quant != "none":
        parts.append(run.manifest.resolved.quant)
    if with_dtype:
        parts.append(run.manifest.model.dtype)
    return " ".join(parts)


def _table1(found: PaperTables) -> list[dict[str, object]]:
    return [
        {
            "model": row.model,
            "top_share": 100 * row.top_share,
            "others_share": 100 * row.others_share,
            "published_top_share": _per_cent(row.published_top_share),
            "published_others_share": _per_cent(
                None if row.published_top_share is None else 1 - row.published_top_share
            ),
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
            "three_largest": ", ".join(row.largest),
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
