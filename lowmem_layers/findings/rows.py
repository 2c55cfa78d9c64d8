"""Findings as rows of text: numbers rounded, with their intervals, for pages, papers and terminals."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from lowmem_layers.findings.findings import TaskLevel
from lowmem_layers.findings.words import interval, minus, number
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.tasks.metrics import Metric

Rows = list[list[str]]
OPPOSITE = "estimate and drop: opposite signs"


def level_rows(tasks: Sequence[TaskLevel]) -> tuple[list[str], Rows]:
    """Lay out the full model's level on every task: header and rows."""
    rows = [
        [
            each.task,
            f"{each.n_items:,}",
            each.metric.words,
            level(each.metric, each.level.value[0], each.level.ci.at(0)),
            "–" if each.chance is None else f"{each.metric.scale * each.chance:.0f} {each.metric.level_unit}",
        ]
        for each in tasks
    ]
    return ["task", "items", "metric", "full model, 95 %", "chance"], rows


def level(metric: Metric, value: float, ci: Interval[float]) -> str:
    """Write a level of a metric with its interval: `84.5 % [80.1, 88.2]`, `−2.45 nats [−2.60, −2.31]`."""
    shown = f"{number(metric.scale * value, metric.decimals)} {metric.level_unit}"
    return minus(f"{shown} {interval(metric.scale * ci.low, metric.scale * ci.high, metric.decimals)}")


def importance_rows(found: Importance, scale: float, unit: str) -> tuple[list[str], Rows]:
    """Lay out one task's importance: header and rows, by rank."""
    digits = 1 if scale == 100.0 else 2
    header = ["sublayer", f"estimate ({unit})", "95 %", f"ablation drop ({unit})", "95 %", "share (%)", "rank"]
    header += ["share 95 %", "note"]
    ci, drop_ci = found.ci.times(scale), found.ablation_ci.times(scale)
    rows = [
        [
            found.players[place],
            number(scale * found.value[place], digits),
            interval(ci.low[place], ci.high[place], digits),
            number(scale * found.ablation_drop[place], digits),
            interval(drop_ci.low[place], drop_ci.high[place], digits),
            number(100 * found.share[place], 1),
            number(found.rank[place], 0),
            interval(100 * found.share_ci.low[place], 100 * found.share_ci.high[place], 1),
            OPPOSITE if found.contradicts[place] else "",
        ]
        for place in found.order()
    ]
    return header, rows


def text_rows(table: pa.Table) -> tuple[list[str], Rows]:
    """Lay any table out as text: numbers with one decimal, a missing value as a dash."""
    rows = [
        ["–" if cell is None else number(cell, 1) if isinstance(cell, float) else str(cell) for cell in row.values()]
        for row in table.to_pylist()
    ]
    return [name.replace("_", " ") for name in table.column_names], rows
