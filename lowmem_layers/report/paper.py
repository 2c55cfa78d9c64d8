"""Figures for a paper, of any runs: the study's figures 2 to 6 with our intervals, and those that it lacks.

In go runs; out come matplotlib figures by name, in the widths of a text of two columns. Figures 2 to 5 are about the
tasks' own metrics, as in the study; the others too, unless the log-likelihood is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lowmem_layers.findings.findings import Side, find
from lowmem_layers.findings.run import Run
from lowmem_layers.report.axes import kind_legend
from lowmem_layers.report.figures import bars_on, levels_on, pie_on
from lowmem_layers.report.page.comparisons import run_titles
from lowmem_layers.report.paper_maps import (
    importance_map,
    interaction_intervals,
    items_figure,
    quantisations,
    rank_plot,
)
from lowmem_layers.report.style import COLUMN_IN, FULL_WIDTH_IN, new_figure, paper_style, shown

_NARROW_LAYERS = 40  # decoder layers that fit into one column's panel


def paper_figures(runs: Sequence[Run], value: str | None = None) -> dict[str, Figure]:
    """Draw every figure that these runs allow: names and matplotlib figures, drawn but not yet saved.

    `value` is that of the maps, ranks, interactions and bars: None for each task's own metric, or `loglikelihood`.
    """
    measured = [(title, run) for title, run in zip(run_titles(runs), runs, strict=True) if find(run).sides]
    if not measured:
        return {}
    found: dict[str, Figure] = {}
    with paper_style():
        own = [(title, run, find(run).sides[0]) for title, run in measured]
        found["figure-2-shares"] = share_grid(own)
        for place, (title, run, side) in enumerate(own):
            found[f"figure-{3 + place}-ablation"] = ablation_panels(title, run, side)
        chosen = own if value is None else [(title, run, find(run).sides[-1]) for title, run in measured]
        found["figure-6-values" if len(own) <= 3 else f"figure-{3 + len(own)}-values"] = value_bars(chosen)
        for place, (title, run, side) in enumerate(chosen):
            number = f"-{place + 1}" if len(chosen) > 1 else ""
            if len(side.found) > 1:
                found[f"map{number}"] = importance_map(title, run, side)
            found[f"ranks{number}"] = rank_plot(title, run, side)
            if side.interactions:
                found[f"interactions{number}"] = interaction_intervals(title, run, side)
            if run.manifest.design.coalitions != "permutations":
                found[f"items{number}"] = items_figure(title, run, side)
        found |= quantisations(chosen)
    return found


def share_grid(runs: Sequence[tuple[str, Run, Side]]) -> Figure:
    """Draw a pie of shares for every run and task, with intervals of the four largest. Source: figure 2."""
    tasks = list(dict.fromkeys(found.task for _, _, side in runs for found in side.found))
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)  # of each run, whose pies go over several lines where there are many tasks
    figure = new_figure(1.9 * rows * len(runs), COLUMN_IN if columns == 1 else FULL_WIDTH_IN * columns / 3)
    grid = figure.subplots(rows * len(runs), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for place, (title, run, side) in enumerate(runs):
        of_task = {found.task: found for found in side.found}
        for nth, task in enumerate(tasks):
            if task not in of_task:
                continue
            axes = grid[place * rows + nth // columns, nth % columns]
            pie_on(axes, run.manifest.design.players, of_task[task], with_intervals=True)
            axes.set_title(shown(task if len(runs) == 1 else f"{title}: {task}"), fontsize=7, loc="center")
    return figure


def ablation_panels(title: str, run: Run, side: Side) -> Figure:
    """Draw what is left without each sublayer, a panel a task. Source: figures 3 to 5."""
    players = run.manifest.design.players
    chances = {each.task: each.chance for each in find(run).tasks}
    columns = 2 if len(side.tables) > 1 and len(players) <= 2 * _NARROW_LAYERS else 1
    rows = -(-len(side.tables) // columns)
    figure = new_figure(0.5 + 1.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(side.tables) :]:
        axes.axis("off")
    for axes, table, single, full in zip(grid.flat, side.tables, side.singles, side.full, strict=False):
        lines = levels_on(axes, players, single, full, side.scale, chances.get(table.task))
        axes.set_title(shown(table.task), pad=3)
    for axes in grid.flat:
        axes.label_outer()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{side.short}\n({'%' if side.unit == 'points' else side.unit})")
    grid[0, 0].set_title(shown(f"{title}: {side.tables[0].task}"), pad=14)
    kind_legend(grid[0, -1], players, lines)
    return figure


def value_bars(runs: Sequence[tuple[str, Run, Side]]) -> Figure:
    """Draw every run's estimates as bars with intervals, one panel a run. Source: figure 6."""
    figure = new_figure(0.4 + 1.7 * len(runs))
    grid = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
    for axes, (title, run, side) in zip(grid, runs, strict=True):
        note = bars_on(axes, run.manifest.design.players, side.overall, side.scale)
        axes.set_ylabel(f"{side.overall.estimator}\n({side.unit}{'; ' + note if note else ''})", fontsize=7)
        axes.set_title(shown(f"{title}: {side.overall.task} by {side.words}"), pad=14)
        kind_legend(axes, run.manifest.design.players)
    return figure
