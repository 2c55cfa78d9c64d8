"""The end of a run on the terminal: importance in a table, what matters most, and where everything is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowmem_layers.cli.output import visible
from lowmem_layers.findings.findings import Findings, Side
from lowmem_layers.findings.rows import level_rows, minus, number
from lowmem_layers.findings.run import Run
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.uncertainty.intervals import Interval

_MOST_ROWS = 64
_WIDEST = 200  # columns


def summarise(run: Run, findings: Findings, page: Path, console: Console | None = None) -> None:
    """Print what a finished run found.

    Names come from data: markup, emoji codes and control characters in them are shown as they are.
    """
    console = console or Console(highlight=False)
    folder = shlex.quote(str(run.folder))

    def say(line: str, *, whole: bool = True) -> None:
        console.print(Text(visible(line)), soft_wrap=whole)  # whole lines can be copied out of the terminal

    # 1) importance; no number is cut short, whatever the terminal's width
    if findings.sides:
        width, console.width = console.width, max(console.width, _WIDEST)
        console.print(importance_table(run.manifest.design.players, findings.sides), crop=False)
        console.width = width
        hidden = len(findings.sides[-1].overall.players) - _MOST_ROWS
        if hidden > 0:
            say(f"and {hidden} more: lowmem-layers importance {folder}")
    # 2) the full model on each task
    header, rows = level_rows(findings.tasks)
    levels = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        levels.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for row in rows:
        levels.add_row(*(Text(visible(cell)) for cell in row))
    console.print(levels)
    # 3) what this says, and where to read on
    for line in (*filter(None, (findings.cut, findings.verdict)), *findings.lines, ""):
        say(line, whole=False)
    say(f"run folder  {run.folder}")
    say(f"report      {page} (open it in a browser)")
    say(f"for a paper lowmem-layers report {folder} (adds PNG and PDF)")
    say(f"all numbers lowmem-layers importance {folder} --format csv")


def importance_table(players: Sequence[Player | Group], sides: Sequence[Side]) -> Table:
    """Lay out every sublayer, the most important by log-likelihood first; ± are 95 % intervals."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=Text("Importance, ± 95 %: " + ", ".join(f"by {side.words} ({side.unit})" for side in sides)),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("sublayer", no_wrap=True)
    for side, style in zip(sides, ("", "cyan"), strict=False):
        for name in ("estimate", "drop", "share"):
            heading = f"{side.short}\n{name}"
            table.add_column(heading, justify="right", no_wrap=True, header_style=style)
    for place in sides[-1].overall.order()[:_MOST_ROWS]:
        player, cells = players[place], []
        for side in sides:
            found = side.overall
            cells += [
                _with_half(side, found.value[place], found.ci.at(place)),
                _with_half(side, found.ablation_drop[place], found.ablation_ci.at(place)),
                f"{number(100 * found.share[place], 1)} %",
            ]
        colour = "green" if isinstance(player, Group) else "red" if player.is_attention else "blue"
        table.add_row(Text(visible(player.name), style=colour), *cells)
    return table


def _with_half(side: Side, value: float, ci: Interval[float]) -> str:
    """Write a value with half its interval's width."""
    digits = 1 if side.scale == 100.0 or abs(side.scale * value) >= 10 else 2
    half = side.scale * (ci.high - ci.low) / 2
    return minus(number(side.scale * value, digits)) + (f" ±{half:.{digits}f}" if np.isfinite(half) else "")
