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

from lowmem_layers.findings.findings import METRIC_WORDS, Findings, Side, coalition_means, cornerstone_lines, find
from lowmem_layers.findings.statement import verdict
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.report.rows import interval, number

if TYPE_CHECKING:
    from lowmem_layers import Run

_MOST_ROWS = 64
_WIDEST = 200  # columns
_SHORT = {"acc": "accuracy", "acc_norm": "accuracy", "nll_per_byte": "per byte"}


def summarise(run: Run, page: Path, console: Console | None = None) -> None:
    """Print what a finished run found."""
    console = console or Console(highlight=False)
    findings = find(run)
    if findings is not None:
        _print_whole(console, sublayer_table(findings))
        hidden = len(findings.gold.overall.players) - _MOST_ROWS
        if hidden > 0:
            console.print(f"and {hidden} more: lowmem-layers importance {shlex.quote(str(run.folder))}")
    console.print(task_table(run))
    if said := verdict(run):
        console.print(said, soft_wrap=True)
    for line in cornerstone_lines(run, findings) if findings is not None else ():
        console.print(line)
    console.print()
    console.print(f"run folder  {run.folder}", soft_wrap=True)
    console.print(f"report      {page} (open it in a browser)", soft_wrap=True)
    console.print(f"for a paper lowmem-layers report {shlex.quote(str(run.folder))} (adds PNG and PDF)", soft_wrap=True)
    console.print(f"all numbers lowmem-layers importance {shlex.quote(str(run.folder))} --format csv", soft_wrap=True)


def _print_whole(console: Console, table: Table) -> None:
    """Print a table with no number cut short, whatever the terminal's width."""
    width = console.width
    console.width = max(width, _WIDEST)
    try:
        console.print(table, crop=False)
    finally:
        console.width = width


def task_table(run: Run) -> Table:
    """Lay out the full model's result on every task."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "items", "metric", "full model, 95 % interval", "chance"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for values in run.value_tables():
        metric = run.metric(values.task)
        scale, unit = (1.0, "") if metric == "nll_per_byte" else (100.0, " %")
        mean = coalition_means(values, [()])
        chance = f"{scale * run.chance(values.task):.0f}{unit}" if unit else "–"
        digits = 1 if unit else 3
        bounds = interval(scale * mean.ci.low[0], scale * mean.ci.high[0], digits)
        shown = f"{number(scale * mean.value[0], digits)}{unit} {bounds}"
        table.add_row(values.task, f"{values.n_items:,}", METRIC_WORDS[metric], shown, chance)
    return table


def sublayer_table(findings: Findings) -> Table:
    """Lay out every sublayer, the most important by log-likelihood first; ± are 95 % intervals."""
    metric, gold = findings.sides
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=f"Importance, ± 95 %: by {metric.words} ({metric.unit}), by log-likelihood ({gold.unit})",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("sublayer", no_wrap=True)
    for side in findings.sides:
        style = "" if side is metric else "cyan"
        for name in ("estimate", "drop", "share"):
            table.add_column(
                f"{_SHORT.get(side.value, 'log-lik.')}\n{name}", justify="right", no_wrap=True, header_style=style
            )
    for position in gold.overall.order()[:_MOST_ROWS]:
        name = gold.overall.players[position]
        row = [cell for side in findings.sides for cell in _cells(side, position)]
        table.add_row(Text(name, style="red" if name.startswith("attn") else "blue"), *row)
    return table


def _cells(side: Side, position: int) -> tuple[str, str, str]:
    found: Importance = side.overall
    return (
        _with_half(side, found.value[position], found.ci.at(position)),
        _with_half(side, found.ablation_drop[position], found.ablation_ci.at(position)),
        number(100 * found.share[position], 1) + " %",
    )


def _with_half(side: Side, value: float, ci: Interval[float]) -> str:
    """Write a value with half its interval's width."""
    digits = 1 if side.scale == 100.0 or abs(side.scale * value) >= 10 else 2
    half = side.scale * (ci.high - ci.low) / 2
    return number(side.scale * value, digits) + (f" ±{half:.{digits}f}" if np.isfinite(half) else "")
