"""Figures for a paper that the study lacks: map, ranks, interactions, estimates against items, quantisations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.findings import Side
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import minus
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.report.axes import cell_edges, kind_legend, player_axis, player_places, tame
from lowmem_layers.report.figures import intervals_on
from lowmem_layers.report.style import COLUMN_IN, FULL_WIDTH_IN, MARKERS, QUIET, colour, new_figure, shown

_NAMED = 30  # sublayers that are named along an axis
_FOLLOWED = 5  # sublayers whose estimates are followed over items
_SHADES = ("#1b1b1b", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito, and black
_SHAPES = ("o", "s", "^", "D", "v", "P")


def importance_map(title: str, run: Run, side: Side) -> Figure:
    """Draw the estimate of every sublayer (along x) on every task (along y); red costs, blue helps when removed."""
    players, grid = run.manifest.design.players, np.array([side.scale * found.value for found in side.found])
    size = np.abs(grid[np.isfinite(grid)])
    most = max(float(size.max(initial=0.0)), 1e-9)
    linear_to = max(float(np.quantile(size, 0.75)) if len(size) else 0.0, most / 100)
    figure = new_figure(0.9 + 0.2 * len(grid))
    axes = figure.subplots()
    mesh = axes.pcolormesh(
        cell_edges(player_places(players)),
        np.arange(len(grid) + 1) - 0.5,
        grid,
        cmap="RdBu_r",
        norm=SymLogNorm(linear_to, vmin=-most, vmax=most),
    )
    axes.set_yticks(range(len(grid)), [shown(found.task) for found in side.found])
    axes.invert_yaxis()
    axes.grid(visible=False)
    player_axis(axes, players)
    axes.set_title(shown(f"{title}, by {side.words}"), fontsize=8)
    bar = figure.colorbar(mesh, ax=axes, label=f"estimate\n({side.unit})", pad=0.01, aspect=8)
    ticks = [-most, 0.0, most] if linear_to > 0.7 * most else [-most, -linear_to, 0.0, linear_to, most]
    bar.set_ticks(ticks, labels=[minus(f"{float(f'{tick:.2g}'):g}") for tick in ticks])
    bar.minorticks_off()
    return figure


def rank_plot(title: str, run: Run, side: Side) -> Figure:
    """Draw the ranks from the most important on, with the ranks' intervals; where there are many, some are named."""
    players, found = run.manifest.design.players, side.overall
    order = [place for place in found.order() if np.isfinite(found.rank[place])]
    figure = new_figure(2.8, COLUMN_IN if len(order) <= 16 else FULL_WIDTH_IN)
    axes = figure.subplots()
    x = np.arange(1, len(order) + 1)
    colours = np.array([colour(players[place]) for place in order])
    axes.vlines(x, found.rank_ci.low[order], found.rank_ci.high[order], colors=list(colours), linewidth=0.8)
    for kind, marker in MARKERS.items():
        chosen = colours == kind
        axes.scatter(x[chosen], found.rank[order][chosen], s=9, marker=marker, color=kind, linewidths=0, zorder=3)
    every = -(-len(order) // _NAMED)
    names = [shown(found.players[place]) for place in order]
    axes.set_xticks(x[::every], names[::every], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlim(0, len(order) + 1)
    axes.set_ylim(len(players) + 0.7, 0.3)
    axes.set_ylabel("rank, 95 % interval")
    axes.set_title(shown(f"{title}: {found.task} by {side.words}"), pad=14)
    kind_legend(axes, players)
    return figure


def interaction_intervals(title: str, run: Run, side: Side) -> Figure:
    """Draw the interactions of sublayers with intervals, a panel for each distance; filled: significant (Holm)."""
    players, found = run.manifest.design.players, side.interactions[-1]
    distance = found.second - found.first
    n_panels = int(distance.max())
    figure = new_figure(0.5 + 1.2 * n_panels)
    grid = figure.subplots(n_panels, 1, squeeze=False, sharex=True)[:, 0]
    places = player_places(players)
    for apart, axes in enumerate(grid, start=1):
        pairs = np.flatnonzero(distance == apart)
        x = (places[found.first[pairs]] + places[found.second[pairs]]) / 2
        value, ci = side.scale * found.value[pairs], found.ci.times(side.scale)
        axes.vlines(x, ci.low[pairs], ci.high[pairs], colors=QUIET, linewidth=0.7)
        sure = found.significant[pairs]
        for full in (True, False):
            face, here = "#1b1b1b" if full else "white", sure == full
            axes.scatter(x[here], value[here], s=9, facecolors=face, edgecolors="#1b1b1b", linewidths=0.6, zorder=3)
        axes.axhline(0, color=QUIET, linewidth=0.6)
        note = tame(axes, value)
        player_axis(axes, players)
        beyond = f", {note}".replace(" beyond", "\nbeyond") if note else ""
        axes.set_ylabel(f"{apart} apart\n({side.unit}{beyond})", fontsize=6.5)
    for axes in grid:
        axes.label_outer()
    words = "interactions of neighbours, below 0 redundancy, above synergy; filled: significant"
    grid[0].set_title(shown(f"{title}: {words}"), fontsize=8)
    return figure


def items_figure(title: str, run: Run, side: Side) -> Figure:
    """Draw the leading sublayers' estimates against the number of items, with intervals: how soon they settle.

    Raises:
        UsageError: the run walked removal orders, whose errors do not shrink with the items alone.
    """
    players, found, estimator = run.manifest.design.players, side.overall, run.manifest.design.estimator
    if estimator == "permutation":
        raise UsageError(f"{run.folder} walked removal orders", "run it without --coalitions permutations")
    leading = found.order()[:_FOLLOWED]
    total = sum(table.n_items for table in side.tables)
    parts = np.unique(np.geomspace(min(4 / min(table.n_items for table in side.tables), 1.0), 1.0, 9))
    figure = new_figure(2.5, COLUMN_IN)
    axes = figure.subplots()
    lines = []
    for part in parts:
        tables = [table.take_items(range(max(2, round(part * table.n_items)))) for table in side.tables]
        weights = [estimator_weights(estimator, each.coalitions, each.players) for each in tables]
        each = mean_over_tasks([estimate_influence(t, w) for t, w in zip(tables, weights, strict=True)])
        ci = mean_interval(each, 0.95).times(side.scale)
        lines.append((sum(table.n_items for table in tables), side.scale * each.value, ci.low, ci.high))
    counts = np.array([line[0] for line in lines])
    value, low, high = (np.array([line[place] for line in lines])[:, leading] for place in (1, 2, 3))
    for nth, place in enumerate(leading):
        shade, name = _SHADES[nth], shown(found.players[place])
        axes.fill_between(counts, low[:, nth], high[:, nth], color=shade, alpha=0.15, linewidth=0)
        axes.plot(counts, value[:, nth], color=shade, marker=_SHAPES[nth], markersize=3, linewidth=1, label=name)
    axes.set_xscale("log")
    axes.set_xticks(counts[[0, len(counts) // 2, -1]], [f"{n:,}" for n in counts[[0, len(counts) // 2, -1]]])
    axes.minorticks_off()
    span = value.max() - value.min()  # the first intervals may be wider than all that is of interest
    axes.set_ylim(max(low.min(), value.min() - span), min(high.max(), value.max() + span))
    axes.set_xlabel(f"items (of {total:,})")
    axes.set_ylabel(f"{found.estimator} estimate ({side.unit})")
    axes.set_title(shown(title))
    axes.legend(ncols=2 if len(players) > 2 else 1, fontsize=6)
    return figure


def quantisations(runs: Sequence[tuple[str, Run, Side]]) -> dict[str, Figure]:
    """Draw runs of one model, the same players and tasks, and other quantisations in one figure each."""
    alike: dict[tuple[object, ...], list[tuple[str, Run, Side]]] = {}
    for each in runs:
        _, run, side = each
        about = run.manifest.model.id, tuple(sorted(run.tasks)), side.value, side.overall.estimator
        alike.setdefault((about, run.manifest.design.names), []).append(each)
    found = {}
    groups = [each for each in alike.values() if len({_width(run) for _, run, _ in each}) > 1]
    for place, group in enumerate(groups):
        players = group[0][1].manifest.design.players
        figure = new_figure(2.6)
        axes = figure.subplots()
        places = player_places(players)
        apart = 0.5 * float(np.diff(places).min(initial=1.0)) / len(group)
        samples = []
        for nth, (_, run, side) in enumerate(group):
            shade, shape = _SHADES[nth % len(_SHADES)], _SHAPES[nth % len(_SHAPES)]
            x = places + apart * (nth - (len(group) - 1) / 2)
            value = side.scale * side.overall.value
            intervals_on(axes, x, value, side.overall.ci.times(side.scale), [shade] * len(x))
            axes.scatter(x, value, s=8, marker=shape, color=shade, linewidths=0, zorder=3)
            samples.append(Line2D([], [], linestyle="", marker=shape, color=shade, label=_width(run), markersize=4))
        axes.axhline(0, color=QUIET, linewidth=0.6)
        side = group[0][2]
        note = tame(axes, np.concatenate([each.scale * each.overall.value for _, _, each in group]))
        axes.set_ylabel(f"{side.overall.estimator} estimate\n({side.unit}{'; ' + note if note else ''})")
        axes.set_title(shown(f"{group[0][1].manifest.model.id}: {side.overall.task} by {side.words}"), pad=14)
        player_axis(axes, players)
        axes.legend(handles=samples, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=len(samples), borderaxespad=0)
        found[f"quantisations{f'-{place + 1}' if place else ''}"] = figure
    return found


def _width(run: Run) -> str:
    """Name what a run's weights were packed in; unpacked ones have a dtype."""
    return shown(run.manifest.model.dtype if run.manifest.packing == "none" else run.manifest.packing)
