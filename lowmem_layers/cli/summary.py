"""The end of a run: the sublayers in a table, the cornerstones, where everything is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem_layers.game.estimate import Importance
from lowmem_layers.study.findings import METRIC_WORDS, N_TOP, Findings, Side, coalition_means, find, top_sublayers

if TYPE_CHECKING:
    from lowmem_layers.study import Run

_MOST_ROWS = 64


def summarise(run: Run, page: Path, console: Console | None = None) -> None:
    """Print what a finished run found."""
    console = console or Console(highlight=False)
    findings = find(run)
    if findings is not None:
        console.print(sublayer_table(findings))
        hidden = len(findings.gold.overall.players) - _MOST_ROWS
        if hidden > 0:
            console.print(f"and {hidden} more: lowmem-layers importance {shlex.quote(str(run.folder))}")
    console.print(task_table(run))
    for line in cornerstone_lines(findings) if findings is not None else ():
        console.print(line)
    console.print()
    console.print(f"run folder  {run.folder}", soft_wrap=True)
    console.print(f"report      {page} (open it in a browser)", soft_wrap=True)
    console.print(f"all numbers lowmem-layers importance {shlex.quote(str(run.folder))} --format csv", soft_wrap=True)


def task_table(run: Run) -> Table:
    """Lay out the full model's result on every task."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "items", "metric", "full model", "chance"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for values in run.value_tables():
        metric = run.metric(values.task)
        scale, unit = (1.0, "") if metric == "nll_per_byte" else (100.0, " %")
        mean = coalition_means(values, [()])
        half = _half(mean.low[0], mean.high[0], scale, 1 if unit else 3)
        chance = f"{scale * run.chance(values.task):.0f}{unit}" if unit else "–"
        shown = f"{scale * mean.value[0]:.{1 if unit else 3}f}{unit}{half}"
        table.add_row(values.task, f"{values.n_items:,}", METRIC_WORDS[metric], shown, chance)
    return table


def sublayer_table(findings: Findings) -> Table:
    """Lay out every sublayer, the most important by log-likelihood first; ± are 95 % intervals."""
    metric, gold = findings.sides
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"importance by {metric.words} ({metric.unit}) and by {gold.words} ({gold.unit}), ± 95 %",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("sublayer", no_wrap=True)
    for side in findings.sides:
        style = "" if side is metric else "cyan"
        for name in ("estimate", "drop", "share"):
            table.add_column(f"{side.unit}\n{name}", justify="right", no_wrap=True, header_style=style)
    for position in gold.overall.order()[:_MOST_ROWS]:
        name = gold.overall.players[position]
        row = [cell for side in findings.sides for cell in _cells(side, position)]
        table.add_row(Text(name, style="red" if name.startswith("attn") else "blue"), *row)
    return table


def cornerstone_lines(findings: Findings) -> list[str]:
    """Say which sublayers matter most, by either value."""
    lines = []
    for side in findings.sides:
        names = top_sublayers(side.overall)
        lines.append(f"top {N_TOP} by {side.words}: {', '.join(names)}")
    return lines


def _cells(side: Side, position: int) -> tuple[str, str, str]:
    found: Importance = side.overall
    digits = 1
    value = f"{side.scale * found.value[position]:.{digits}f}" + _half(
        found.ci_low[position], found.ci_high[position], side.scale, digits
    )
    drop = f"{side.scale * found.ablation_drop[position]:.{digits}f}" + _half(
        found.ablation_ci_low[position], found.ablation_ci_high[position], side.scale, digits
    )
    return value, drop, f"{100 * found.share[position]:.1f} %"


def _half(low: float, high: float, scale: float, digits: int) -> str:
    """Write half an interval's width."""
    width = scale * (high - low) / 2
    return f" ±{width:.{digits}f}" if np.isfinite(width) else ""
