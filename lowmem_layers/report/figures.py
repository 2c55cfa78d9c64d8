"""The figures: importance bars, the ablation scatter, the pie of shares, the map of windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowmem_layers.findings.findings import Means
from lowmem_layers.findings.words import interval
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray, ValueTable
from lowmem_layers.report.axes import MOST_TICKS, cell_edges, kind_legend, player_axis, player_places, tame
from lowmem_layers.report.style import MARKERS, QUIET, colour, new_figure, shown

_CAPTIONED = 4


def importance_bars(
    players: Sequence[Player | Group], found: Importance, scale: float, unit: str, title: str
) -> Figure:
    """Draw the estimates as bars with intervals, attention and feed-forward side by side in every decoder layer.

    Source: the paper's figure 6, with intervals.
    """
    figure = new_figure(2.5)
    axes = figure.subplots()
    note = bars_on(axes, players, found, scale)
    axes.set_ylabel(f"{found.estimator} estimate\n({unit}{'; ' + note if note else ''})")
    axes.set_title(title, pad=14)
    kind_legend(axes, players)
    return figure


def bars_on(axes: Axes, players: Sequence[Player | Group], found: Importance, scale: float) -> str:
    """Draw the estimates as bars with intervals; give what is to be said of the scale."""
    values, colours = scale * found.value, [colour(player) for player in players]
    x = player_places(players, 0.2)
    axes.bar(x, values, width=0.4, color=colours, linewidth=0)
    intervals_on(axes, x, values, found.ci.times(scale), ["#222222"] * len(x))
    axes.axhline(0, color=QUIET, linewidth=0.6)
    note = tame(axes, values)
    player_axis(axes, players)
    return note


def ablation_scatter(
    players: Sequence[Player | Group],
    single: Means,
    full: Means,
    scale: float,
    label: str,
    title: str,
    chance: float | None,
) -> Figure:
    """Draw the value without each single sublayer, the full model's, and random guessing's where there is one.

    With a `chance`, values are fractions (accuracy) and the axis goes from 0 to 100 %.
    Source: the paper's figures 3 to 5, with intervals.
    """
    figure = new_figure(2.6)
    axes = figure.subplots()
    lines = levels_on(axes, players, single, full, scale, chance)
    axes.set_ylabel(label)
    axes.set_title(title, pad=14)
    kind_legend(axes, players, lines)
    return figure


def levels_on(
    axes: Axes,
    players: Sequence[Player | Group],
    single: Means,
    full: Means,
    scale: float,
    chance: float | None,
    most_ticks: int = MOST_TICKS,
) -> list[Line2D]:
    """Draw the value without each single player, the full model's and chance's; give samples of the two lines."""
    lines = [axes.axhline(scale * full.value[0], color="#222222", linewidth=0.9, label="full model")]
    if chance is not None:
        lines.append(
            axes.axhline(scale * chance, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), label="random guess")
        )
    colours = [colour(player) for player in players]
    x = player_places(players, 0.1)
    intervals_on(axes, x, scale * single.value, single.ci.times(scale), colours)
    for kind, marker in MARKERS.items():
        chosen = np.array([each == kind for each in colours])
        axes.scatter(x[chosen], scale * single.value[chosen], s=13, marker=marker, color=kind, linewidths=0, zorder=3)
    if chance is not None:
        axes.set_ylim(-0.03 * scale, 1.03 * scale)
    player_axis(axes, players, most_ticks)
    return [_sample(line) for line in lines]


def share_pie(players: Sequence[Player | Group], found: Importance, title: str) -> Figure:
    """Draw the shares in layer order, anti-clockwise from the top, the four largest captioned.

    Source: the paper's figure 2.
    """
    figure = new_figure(2.6, 3.4)
    axes = figure.subplots()
    axes.set_title(title)
    pie_on(axes, players, found)
    return figure


def pie_on(axes: Axes, players: Sequence[Player | Group], found: Importance, in_grid: bool = False) -> None:
    """Draw the shares as a pie, with captions of the four largest; in a grid small ones, with intervals."""
    shares, ci = np.nan_to_num(found.share), found.share_ci.times(100)
    if shares.sum() <= 0:
        axes.axis("off")
        axes.text(0.5, 0.5, "no sublayer has a positive estimate", ha="center", transform=axes.transAxes)
        return
    largest = set(np.argsort(-shares, kind="stable")[:_CAPTIONED].tolist())
    captions = ["" for _ in found.players]
    for place in largest:
        if shares[place] > 0:
            ends = f" {interval(float(ci.low[place]), float(ci.high[place]), 1)}" if in_grid else ""
            captions[place] = f"{shown(found.players[place])}\n{100 * shares[place]:.1f} %{ends}"
    _, texts = axes.pie(
        shares,
        colors=[colour(player) for player in players],
        startangle=90,
        counterclock=True,
        wedgeprops={"linewidth": 0.4 if len(shares) <= 80 else 0.15, "edgecolor": "white"},
        radius=1.0,
    )[:2]
    _caption(axes, texts, captions, *((0.5, 5.5) if in_grid else (0.36, 7)))
    wide = 3.3 if in_grid else 1.75
    axes.set_xlim(-wide, wide)
    axes.set_ylim(-1.15, 1.15)


def window_map(
    players: Sequence[Player | Group], table: ValueTable, scale: float, unit: str, title: str, done: str = "removed"
) -> Figure:
    """Draw what every window costs that is removed, or what else was `done` to it: the first sublayer along x, the
    size along y.

    The colours' scale is compressed, so that the few dear windows do not hide the others; gains are drawn as 0.
    """
    sizes = max(len(removed) for removed in table.coalitions)
    drops = np.full((sizes, table.n_players), np.nan)
    full = table.mean()
    for column, removed in enumerate(table.coalitions):
        if removed and removed[-1] - removed[0] + 1 == len(removed):
            drops[len(removed) - 1, removed[0]] = scale * (full - table.values[:, column].mean())
    figure = new_figure(1.1 + 0.22 * sizes)
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        cell_edges(player_places(players)),
        np.arange(sizes + 1) + 0.5,
        drops,
        cmap="cividis",
        norm=PowerNorm(0.4, vmin=0.0, vmax=max(float(np.nanmax(drops, initial=0.0)), 1e-12)),
    )
    axes.set_yticks(range(1, sizes + 1))
    axes.set_ylabel(f"sublayers\n{done}")
    axes.set_title(title)
    axes.grid(visible=False)
    player_axis(axes, players)
    axes.set_xlabel(f"{axes.get_xlabel()} of the first {done}")
    figure.colorbar(mesh, ax=axes, label=f"lost ({unit})", pad=0.01, aspect=8)
    return figure


def intervals_on(axes: Axes, x: np.ndarray, values: np.ndarray, ci: Interval[FloatArray], colours: list[str]) -> None:
    """Draw an upright line for every interval that is known."""
    known = np.isfinite(values) & np.isfinite(ci.low) & np.isfinite(ci.high)
    shown = [colour for colour, is_known in zip(colours, known, strict=True) if is_known]
    axes.vlines(x[known], ci.low[known], ci.high[known], colors=shown, linewidth=0.7)


def _sample(line: Line2D) -> Line2D:
    """Give a legend's sample of a line."""
    sample = Line2D([], [])
    sample.update_from(line)
    sample.set_label(str(line.get_label()))
    return sample


def _caption(axes: Axes, texts: list, captions: list[str], apart: float, size: float) -> None:
    """Write captions outside the pie, pushed apart where slices are neighbours."""
    placed: dict[bool, list[float]] = {True: [], False: []}
    wanted = [(text.get_position(), caption) for text, caption in zip(texts, captions, strict=True) if caption]
    for (x, y), caption in sorted(wanted, key=lambda pair: -pair[0][1]):
        right = x > 0
        height = min([y, 0.9, *(above - apart for above in placed[right])])
        placed[right].append(height)
        written = axes.annotate(
            caption,
            xy=(x / 1.1, y / 1.1),
            xytext=(1.2 if right else -1.2, height),
            ha="left" if right else "right",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": QUIET, "shrinkA": 1, "shrinkB": 0},
        )
        written.set_in_layout(False)  # the axes' limits leave room
