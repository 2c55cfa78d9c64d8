"""Figures for a paper, of any runs: the study's figures 2 to 6 with our intervals, and those that it lacks.

In go runs; out come matplotlib figures by name, in the widths of a text of two columns. Figures 2 to 5 are about the
tasks' own metrics, as in the study; the others too, unless the log-likelihood is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lowmem_layers.findings.findings import Side
from lowmem_layers.findings.findings import side as side_by
from lowmem_layers.findings.run import Run
from lowmem_layers.record.files import make_folder
from lowmem_layers.report.axes import MOST_TICKS, kind_legend, kind_samples
from lowmem_layers.report.figures import bars_on, levels_on, pie_on
from lowmem_layers.report.page.comparisons import run_titles
from lowmem_layers.report.paper_maps import (
    importance_map,
    interaction_intervals,
    items_figure,
    quantisations,
    rank_plot,
)
from lowmem_layers.report.style import COLUMN_IN, FORMATS, FULL_WIDTH_IN, new_figure, paper_style, save, shown

_NARROW_LAYERS = 40  # decoder layers that fit into one column's panel
_PIES = 3  # beside each other


def _by(run: Run, value: str) -> Side:
    """Give importance by a value: as it was found, or computed now where a run was asked for another one."""
    return next((each for each in run.findings.sides if each.value == value), None) or side_by(run, value)


def paper_figures(runs: Sequence[Run], value: str | None = None) -> dict[str, Figure]:
    """Draw every figure that these runs allow: names and matplotlib figures, drawn but not yet saved.

    `value` is that of the maps, ranks, interactions and bars: None for each task's own metric, or `loglikelihood`.
    """
    measured = [(title, run) for title, run in zip(run_titles(runs), runs, strict=True) if run.findings.sides]
    if not measured:
        return {}
    found: dict[str, Figure] = {}
    with paper_style():
        own = [(title, run, run.findings.sides[0]) for title, run in measured]
        found["figure-2-shares"] = share_grid(own)
        for place, (title, run, side) in enumerate(own):
            found[f"figure-{3 + place}-ablation"] = ablation_panels(title, run, side)
        chosen = own if value is None else [(title, run, _by(run, value)) for title, run in measured]
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


def write_paper_figures(runs: Sequence[Run], folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Save every figure that these runs allow, by the tasks' own metrics and by the log-likelihood; give the files.

    Raises:
        RecordError: a record is damaged, or the folder cannot be written.
    """
    make_folder(folder)
    written = []
    for value, ending in ((None, ""), ("loglikelihood", "-loglikelihood")):
        for name, figure in paper_figures(runs, value).items():
            if value is not None and name.startswith(("figure-2", "figure-3", "figure-4", "figure-5")):
                continue  # the study's figures of accuracies
            with paper_style():
                save(figure, folder, f"{name}{ending}", formats)
            written += [folder / f"{name}{ending}.{form}" for form in formats]
    return written


def share_grid(runs: Sequence[tuple[str, Run, Side]]) -> Figure:
    """Draw a pie of shares for every run and task, with intervals of the four largest. Source: figure 2."""
    most = max(len(side.found) for _, _, side in runs)
    columns = min(most, _PIES)
    rows = [-(-len(side.found) // columns) for _, _, side in runs]  # of each run: many tasks take several lines
    width = COLUMN_IN if columns == 1 else FULL_WIDTH_IN * columns / _PIES
    figure = new_figure(0.3 * len(runs) + 1.2 * sum(rows), width)
    parts = figure.subfigures(len(runs), 1, squeeze=False, height_ratios=[0.3 + 1.2 * each for each in rows])[:, 0]
    for part, n_rows, (title, run, side) in zip(parts, rows, runs, strict=True):
        grid = part.subplots(n_rows, columns, squeeze=False)
        part.suptitle(shown(title), fontsize=8)
        for axes in grid.flat[len(side.found) :]:
            axes.axis("off")
        for axes, found in zip(grid.flat, side.found, strict=False):
            pie_on(axes, run.manifest.design.players, found, in_grid=True)
            axes.set_title(shown(found.task), fontsize=7, loc="center")
    return figure


def ablation_panels(title: str, run: Run, side: Side) -> Figure:
    """Draw what is left without each sublayer, a panel a task. Source: figures 3 to 5."""
    players, n_panels = run.manifest.design.players, len(side.tables)
    chances = {each.task: each.chance for each in run.findings.tasks}
    columns = 2 if n_panels > 1 and len(players) <= 2 * _NARROW_LAYERS else 1
    rows = -(-n_panels // columns)
    figure = new_figure(0.5 + 1.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    lines = []
    for place, axes in enumerate(grid.flat):
        if place >= n_panels:
            axes.axis("off")
            continue
        task = side.tables[place].task
        ticks = MOST_TICKS // columns // 2 * 2
        found = side.singles[place], side.full[place], side.scale, chances.get(task)
        lines = max(lines, levels_on(axes, players, *found, ticks), key=len)
        axes.set_title(shown(task), pad=3)
        if place + columns < n_panels:
            axes.set_xlabel("")
        if place % columns == 0:
            axes.set_ylabel(f"{side.short}\n({'%' if side.unit == 'points' else side.unit})")
    figure.suptitle(shown(title), fontsize=9, x=0.01, ha="left")
    samples = [*kind_samples(players), *lines]
    figure.legend(handles=samples, loc="outside lower right", ncols=len(samples))
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
