"""Interactions of neighbouring sublayers as a figure and as rows of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from lowmem_layers.findings.rows import Rows
from lowmem_layers.findings.words import interval, minus, number, p_value
from lowmem_layers.game.answers.interactions import Interactions
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.report.axes import cell_edges, player_axis, player_places
from lowmem_layers.report.style import new_figure


def interaction_map(
    players: Sequence[Player | Group], found: Interactions, scale: float, unit: str, title: str
) -> Figure:
    """Draw the matrix's band: a pair's first sublayer along x, how far apart the two are along y.

    Blue is redundancy, red synergy; dots mark pairs that are significant after Holm's correction. The colours' scale
    is logarithmic beyond the third quartile, so that a few strong pairs do not hide the others.
    """
    distance = found.second - found.first
    band = np.full((int(distance.max()), len(found.players)), np.nan)
    band[distance - 1, found.first] = scale * found.value
    size = np.abs(band[np.isfinite(band)])
    most = max(float(size.max(initial=0.0)), 1e-9)
    linear_to = max(float(np.quantile(size, 0.75)) if len(size) else 0.0, most / 100)
    figure = new_figure(1.1 + 0.24 * len(band))
    axes = figure.subplots()
    places = player_places(players)
    mesh = axes.pcolormesh(
        cell_edges(places),
        np.arange(len(band) + 1) + 0.5,
        band,
        cmap="RdBu_r",
        norm=SymLogNorm(linear_to, vmin=-most, vmax=most),
    )
    sure = found.significant
    axes.plot(places[found.first[sure]], distance[sure], ".", color="#222222", markersize=2.5)
    axes.set_yticks(range(1, len(band) + 1))
    axes.set_ylabel("places\napart")
    axes.set_title(title)
    axes.grid(visible=False)
    player_axis(axes, players)
    axes.set_xlabel(f"{axes.get_xlabel()} of the pair's first")
    bar = figure.colorbar(mesh, ax=axes, label=f"interaction ({unit})", pad=0.01, aspect=8)
    ticks = [-most, -linear_to, 0.0, linear_to, most] if linear_to < 0.7 * most else [-most, 0.0, most]
    bar.set_ticks(ticks, labels=[minus(f"{tick:.2g}") for tick in ticks])
    bar.minorticks_off()
    return figure


def interaction_rows(found: Interactions, scale: float, unit: str) -> tuple[list[str], Rows]:
    """Lay pairs out, the surest first: by adjusted p-value, then by size."""
    digits = 1 if scale == 100.0 else 2
    header = ["pair", f"interaction ({unit})", "95 %", "adjusted p", "kind"]
    ci = found.ci.times(scale)
    order = np.lexsort((-np.abs(found.value), found.p_adjusted))
    rows = [
        [
            f"{found.players[found.first[pair]]} + {found.players[found.second[pair]]}",
            number(scale * float(found.value[pair]), digits),
            interval(float(ci.low[pair]), float(ci.high[pair]), digits),
            p_value(float(found.p_adjusted[pair])),
            found.kind(pair),
        ]
        for pair in order.tolist()
    ]
    return header, rows
