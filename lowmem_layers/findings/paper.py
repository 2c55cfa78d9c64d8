"""The paper's tables 1 to 4 for any set of runs, the published numbers beside ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.paper_tables import CODE_LARGEST, PaperTables, paper_tables
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.model.change import REMOVE
from lowmem_layers.tasks.metrics import metric_named

if TYPE_CHECKING:
    from lowmem_layers.findings.run import Run


def refusal(run: Run) -> UsageError | None:
    """Say why a run has no place in the paper's tables; None where it has one."""
    design = run.manifest.design
    if design.coalitions != "windows" or design.grouping is not None:
        return UsageError(
            f"{run.folder} is no run of windows of sublayers", "the study's tables need --coalitions windows, no groups"
        )
    if run.manifest.change != REMOVE:
        return UsageError(
            f"{run.folder}: its sublayers were {run.manifest.change.words}", "the study's tables are of removals"
        )
    for task in run.tasks:
        if not metric_named(run.metric(task)).has_chance:
            return UsageError(
                f"{run.folder}: {task} is judged by {run.metric(task)}", "the study's tables are of accuracies"
            )
    return None


def tables_of(runs: Sequence[Run], *, as_code: bool = False) -> PaperTables:
    """Compute the tables; runs are named by their model, and by their quantisation where it is not `none`.

    `as_code`, and runs of the preset paper-code alone: windows of up to 3, rounded as in the authors' public code.

    Runs of one name that hold different tasks are one model's; where they hold the same task they are told apart by
    what they compute in.

    Raises:
        UsageError: two runs of the same name and task, a run that has no place in the tables, or `as_code` without the
            windows for it.
    """
    # 1) names; where two runs of one name hold the same task, the dtype is part of the name
    held = Counter((_name(run), task) for run in runs for task in run.tasks)
    twice = {name for (name, _), count in held.items() if count > 1}
    # 2) the tasks of each name
    named: dict[str, dict[str, ValueTable]] = {}
    for run in runs:
        problem = refusal(run)
        if problem is not None:
            raise problem
        name = _name(run)
        tasks = named.setdefault(f"{name} {run.manifest.model.dtype}" if name in twice else name, {})
        for table in run.value_tables():
            if table.task in tasks:
                raise UsageError(
                    f"two runs of {name} {run.manifest.model.dtype} hold {table.task}",
                    "give one run a model, quantisation, dtype and task",
                )
            tasks[table.task] = table
    # 3) as the code does, with all of its windows
    as_code = as_code or all(run.manifest.passed.preset == "paper-code" for run in runs)
    for run in runs if as_code else ():
        largest = largest_window(run.manifest.plan.coalitions, len(run.manifest.design.players))
        if largest < CODE_LARGEST:
            raise UsageError(
                f"{run.folder} has windows of up to {largest} sublayers, the authors' code takes up to {CODE_LARGEST}",
                f"measure them with run --max-removed {CODE_LARGEST}; tables without --as-code take the run's windows",
            )
    return paper_tables(named, max_removed=CODE_LARGEST if as_code else None, as_code=as_code)


def paper_table(found: PaperTables, number: int) -> pa.Table:
    """Lay out one of the four tables; shares and drops in per cent.

    Raises:
        UsageError: there is no such table.
    """
    if number == 1:
        rows = [
            {
                "model": row.model,
                "top_share": 100 * row.top_share,
                "others_share": 100 * row.others_share,
                "published_top_share": _per_cent(row.published_top_share),
                "published_others_share": _per_cent(row.published_top_share, others=True),
                **_ends("top_share", row.top_ci),
            }
            for row in found.table1
        ]
    elif number == 2:
        rows = [
            {
                "model": row.model,
                "cornerstones": ", ".join(row.cornerstones),
                "source": row.source,
                "published": ", ".join(row.published or ()),
                "three_largest": ", ".join(row.largest),
                "certain": ", ".join(row.certain),
            }
            for row in found.table2
        ]
    elif number == 3:
        rows = [
            {"model": row.model, "cornerstone_drop": 100 * row.cornerstone_drop, "other_drop": 100 * row.other_drop}
            | {
                "published_cornerstone_drop": _per_cent(row.published[0] if row.published else None),
                "published_other_drop": _per_cent(row.published[1] if row.published else None),
            }
            | _ends("cornerstone_drop", row.cornerstone_ci)
            | _ends("other_drop", row.other_ci)
            for row in found.table3
        ]
    elif number == 4:
        rows = [
            {"task": row.task, "model": row.model, "drop": 100 * row.drop, "published": _per_cent(row.published)}
            | _ends("drop", row.ci)
            for row in found.table4
        ]
    else:
        raise UsageError(f"there is no table {number}", "the study has tables 1, 2, 3 and 4")
    return pa.Table.from_pylist(rows)


def _ends(name: str, ci: Interval[float]) -> dict[str, float]:
    return {f"{name}_low": 100 * ci.low, f"{name}_high": 100 * ci.high}


def _name(run: Run) -> str:
    """Name a run's model, and the packing that its weights had (not what was asked: a GGUF file keeps its own)."""
    packing = run.manifest.packing
    return run.manifest.model.id if packing == "none" else f"{run.manifest.model.id} {packing}"


def _per_cent(fraction: float | None, *, others: bool = False) -> float | None:
    """Give a share in per cent, or what the others' shares add up to."""
    return None if fraction is None else 100 * (1 - fraction if others else fraction)
