"""Two runs in one figure: both estimates of every sublayer above, what differs below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import CORRECTIONS, correlation_words
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.compare import Comparison
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray
from lowmem_layers.record.files import cannot_write, make_folder
from lowmem_layers.report.axes import kind_legend, player_axis, player_places, tame
from lowmem_layers.report.style import FORMATS, MARKERS, QUIET, colour, new_figure, paper_style, save
from lowmem_layers.tasks.metrics import metric_named


def draw_comparison(a: Run, b: Run, found: dict[str, Comparison], value: str | None, file: str | Path) -> None:
    """Draw the comparison of the mean over tasks (or of the only task) into FILE.svg, .png or .pdf.

    Raises:
        UsageError: another ending.
        RecordError: the file cannot be written.
    """
    path, form = Path(file), figure_format(file)
    task, one = list(found.items())[-1]
    metric = value or a.metric(task.split(" / ")[0] if task != "all" else a.tasks[0])
    make_folder(path.parent)
    try:
        with paper_style():
            figure = comparison_figure(a.manifest.design.players, one, task, metric, _names(a, b))
            save(figure, path.parent, path.stem, (form,))
    except OSError as error:
        raise cannot_write(path, error) from error


def figure_format(file: str | Path) -> str:
    """Read a figure's format from its ending.

    Raises:
        UsageError: an ending that is none of the formats'.
    """
    form = Path(file).suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise UsageError(f"--figure {file} ends in none of .{', .'.join(FORMATS)}", "for example --figure compared.svg")
    return form


def comparison_figure(
    players: Sequence[Player | Group], one: Comparison, task: str, metric: str, names: tuple[str, str]
) -> Figure:
    """Draw A's and B's estimates with intervals, and A − B with those that changed significantly filled."""
    shown = metric_named(metric)
    scale, unit = shown.scale, shown.unit
    figure = new_figure(4.3)
    above, below = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    _both(above, players, one, scale, unit, names)
    above.set_title(f"{task}, by {shown.words}", pad=14)
    _difference(below, players, one, scale, unit)
    player_axis(below, players)
    above.tick_params(labelbottom=False)
    above.grid(visible=False, axis="x")
    return figure


def _both(
    axes: Axes, players: Sequence[Player | Group], one: Comparison, scale: float, unit: str, names: tuple[str, str]
) -> None:
    places = player_places(players)
    apart = 0.22 * float(np.diff(places).min(initial=1.0))  # of two points of one player
    for value, ci, shift, filled in ((one.value_a, one.ci_a, -apart, True), (one.value_b, one.ci_b, apart, False)):
        _points(axes, players, places + shift, scale * value, ci.times(scale), np.full(len(value), filled))
    axes.axhline(0, color=QUIET, linewidth=0.6)
    note = tame(axes, scale * np.concatenate([one.value_a, one.value_b]))
    axes.set_ylabel(f"{one.estimator} estimate\n({unit}{'; ' + note if note else ''})")
    kind_legend(axes, players, [_sample(names[0], filled=True), _sample(names[1], filled=False)])


def _difference(axes: Axes, players: Sequence[Player | Group], one: Comparison, scale: float, unit: str) -> None:
    places = player_places(players)
    _points(axes, players, places, scale * one.difference, one.ci.times(scale), one.significant)
    axes.axhline(0, color=QUIET, linewidth=0.6)
    note = tame(axes, scale * one.difference)
    axes.set_ylabel(f"A − B\n({unit}{'; ' + note if note else ''})")
    same = one.agreement
    axes.set_title(
        f"{correlation_words('Spearman', same.spearman, same.spearman_ci)}, "
        f"{same.overlap} of the top {same.top_k} the same; {int(one.significant.sum())} of {len(one.players)} changed "
        f"(filled: {CORRECTIONS[one.correction]}, {100 * one.level:.0f} %)",
        fontsize=8,
    )


def _points(
    axes: Axes,
    players: Sequence[Player | Group],
    x: np.ndarray,
    y: np.ndarray,
    ci: Interval[FloatArray],
    filled: np.ndarray,
) -> None:
    """Draw every player in its kind's colour and marker, filled or hollow, with its interval."""
    colours = np.array([colour(player) for player in players])
    known = np.isfinite(y) & np.isfinite(ci.low) & np.isfinite(ci.high)
    axes.vlines(x[known], ci.low[known], ci.high[known], colors=list(colours[known]), linewidth=0.7)
    for kind, marker in MARKERS.items():
        for full in (True, False):
            chosen = (colours == kind) & (filled == full)
            face = kind if full else "white"
            axes.scatter(
                x[chosen], y[chosen], s=11, marker=marker, facecolors=face, edgecolors=kind, linewidths=0.7, zorder=3
            )


def _sample(name: str, *, filled: bool) -> Line2D:
    face = QUIET if filled else "white"
    return Line2D(
        [], [], linestyle="", marker="o", markerfacecolor=face, markeredgecolor=QUIET, markersize=4.5, label=name
    )


def _names(a: Run, b: Run) -> tuple[str, str]:
    """Name the runs by what tells them apart: model, packing (unpacked: dtype), tasks; else A and B."""
    sides = []
    for run in (a, b):
        model = run.manifest.model
        packing = run.manifest.packing
        width = model.dtype if packing == "none" else packing
        sides.append((model.id, width, ", ".join(run.tasks)))
    told = [place for place in range(len(sides[0])) if sides[0][place] != sides[1][place]]
    first, second = (" ".join(side[place] for place in told) for side in sides)
    return f"A {first}".strip(), f"B {second}".strip()
