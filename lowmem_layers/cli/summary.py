"""The end of a run on the terminal: importance in a table, what matters most, and where everything is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from lowmem_layers.cli.output import SUMMARY_ROWS, visible
from lowmem_layers.cli.spelled import Spelled
from lowmem_layers.findings.findings import Findings, Side
from lowmem_layers.findings.rows import level_rows
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import interval, minus, number
from lowmem_layers.game.players.groups import Group
from lowmem_layers.model.change import REMOVE
from lowmem_layers.record.manifest import Manifest

_WIDEST = 200  # columns


def summarise(
    run: Run, findings: Findings, page: Path, console: Console | None = None, n_rows: int | None = SUMMARY_ROWS
) -> None:
    """Print what a finished run found: at most `n_rows` sublayers (None: all of them), and what is certain.

    Names come from data: markup, emoji codes and control characters in them are shown as they are.
    """
    console = console or Console(highlight=False)
    folder = shlex.quote(str(run.folder))

    def say(line: str, *, whole: bool = True) -> None:
        console.print(Spelled(Text(visible(line))), soft_wrap=whole)  # whole lines can be copied out of the terminal

    # 1) importance; no number is cut short, whatever the terminal's width
    if findings.sides:
        size = console.size  # whole, with its height: a width alone means nothing to a dumb terminal
        width, console.size = size.width, ConsoleDimensions(max(size.width, _WIDEST), size.height)
        table = importance_table(run.manifest, findings.sides, n_rows)
        if console.measure(table).maximum > width:
            table.padding = 0  # the box has a space between columns: 80 in all then hold them, intervals included
        console.print(Spelled(table), crop=False)
        console.size = size
        hidden = 0 if n_rows is None else len(findings.sides[-1].overall.players) - n_rows
        if hidden > 0:
            say(f"{hidden} more rows: lowmem-layers importance {folder}, or --all-rows with run")
        for line in certain_lines(findings.sides):
            say(line, whole=False)
    # 2) the full model on each task
    header, rows = level_rows(findings.tasks)
    levels = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        levels.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for row in rows:
        levels.add_row(*(Text(visible(cell)) for cell in row))
    console.print(Spelled(levels))
    # 3) what this says, and where to read on
    said = (*findings.cautions, *findings.perplexities, *filter(None, (findings.cut, findings.verdict)))
    for line in (*said, *findings.lines, ""):
        say(line, whole=False)
    say(f"run folder  {run.folder}")
    say(f"report      {page} (open it in a browser)")
    say(f"for a paper lowmem-layers report {folder} (adds PNG and PDF)")
    say(f"all numbers lowmem-layers importance {folder} --format csv")


def importance_table(manifest: Manifest, sides: Sequence[Side], n_rows: int | None = SUMMARY_ROWS) -> Table:
    """Lay out the sublayers that matter most by log-likelihood: at most `n_rows` of them (None: all)."""
    players, done = manifest.design.players, manifest.change
    chosen = sides[-1].overall.order()[:n_rows]
    whose = "players" if any(isinstance(player, Group) for player in players) else "sublayers"
    count = (
        f"The {len(chosen)} most important of {len(players)}" if len(chosen) < len(players) else f"All {len(players)}"
    )
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=Text(
            f"{count} {whose}, by {sides[-1].words}\n{'' if done == REMOVE else f'each {done.words}; '}"
            "estimates with 95 % intervals"
        ),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("sublayer", no_wrap=True)
    for side in sides:
        table.add_column(f"estimate\n{side.short} ({side.unit})", justify="right", no_wrap=True)
    for heading in (f"drop\n({sides[-1].unit})", "share\n(%)", "possible\nranks"):
        table.add_column(heading, justify="right", no_wrap=True)
    overall = sides[-1].overall
    for place in chosen:
        player, cells = players[place], []
        for side in sides:
            value, ci = side.scale * side.overall.value[place], side.overall.ci.times(side.scale).at(place)
            ends = interval(ci.low, ci.high, _digits(side, value))
            shown = "–" if side.overall.unreached[place] else number(value, _digits(side, value))
            cells.append(shown + ("" if ends == "–" else f" {ends}"))
        drop = sides[-1].scale * overall.ablation_drop[place]
        ranks = overall.rank_ci.at(place)
        ends = dict.fromkeys((number(ranks.low, 0), number(ranks.high, 0)))  # one where both are the same
        share_ci = overall.share_ci.times(100.0).at(place)
        share = f"{number(100 * overall.share[place], 0)} {interval(share_ci.low, share_ci.high, 0)}".removesuffix(" –")
        cells += [number(drop, _digits(sides[-1], drop)), share, "–".join(ends)]
        colour = "green" if isinstance(player, Group) else "red" if player.is_attention else "blue"
        table.add_row(Text(visible(player.name), style=colour), *map(minus, cells))
    return table


def certain_lines(sides: Sequence[Side]) -> list[str]:
    """Say for each side what its intervals prove: how many sublayers matter, and which are certainly on top."""
    lines = []
    for side in sides:
        found = side.overall
        known = np.isfinite(found.ci.low)
        matter = int((found.ci.low[known] > 0).sum())
        on_top = [found.players[place] for place in found.order() if found.top_k_decision[place] == 1]
        top = f"certainly among the top {found.top_k}: {', '.join(on_top) or 'none yet'}"
        lines.append(f"by {side.words}, {matter} of {len(found.players)} certainly matter (95 % each); {top}")
    return lines


def _digits(side: Side, value: float) -> int:
    """Choose the decimals of a value in its unit: fewer for per cent and for large numbers."""
    return 1 if side.scale == 100.0 or abs(value) >= 10 else 2
