"""Axes that figures share: decoder layers or groups below, a legend above, a scale for small and large values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MultipleLocator

from lowmem_layers.findings.words import minus
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.report.style import MARKERS, kind_words, shown

MOST_TICKS = 32
_MOST_SIGNS = 90  # of all names along x before they are slanted
_DOMINANT = 25.0


def player_places(players: Sequence[Player | Group], apart: float = 0.25) -> np.ndarray:
    """Place sublayers along x by decoder layer, attention left and feed-forward right of it; groups one by one.

    The only sublayer of a layer stands in its middle.

    Shapes: (players,), ascending for players in execution order.
    """
    sublayers = [player for player in players if isinstance(player, Player)]
    if len(sublayers) < len(players):  # a group belongs to no decoder layer
        return np.arange(len(players), dtype=float)
    of_layer = Counter(player.layer for player in sublayers)
    sides = [0.0 if of_layer[p.layer] == 1 else -apart if p.is_attention else apart for p in sublayers]
    return np.array([player.layer + side for player, side in zip(sublayers, sides, strict=True)])


def cell_edges(places: np.ndarray) -> np.ndarray:
    """Put the edges of a map's cells halfway between its players. Shapes: (players,) → (players + 1,)."""
    if len(places) == 1:
        return places[0] + np.array([-0.5, 0.5])
    middles = (places[1:] + places[:-1]) / 2
    return np.concatenate([[2 * places[0] - middles[0]], middles, [2 * places[-1] - middles[-1]]])


def player_axis(axes: Axes, players: Sequence[Player | Group], most_ticks: int = MOST_TICKS) -> None:
    """Number the decoder layers along x; where groups play, name all players (every few, where there are many)."""
    axes.grid(visible=False, axis="x")
    sublayers = [player for player in players if isinstance(player, Player)]
    if len(sublayers) < len(players):
        every = -(-len(players) // most_ticks)
        places = range(0, len(players), every)
        names = [shown(players[place].name) for place in places]
        slanted = sum(map(len, names)) > _MOST_SIGNS
        axes.set_xticks(list(places), names, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set_xlim(-0.7, len(players) - 0.3)
        axes.set_xlabel("group of sublayers")
        return
    n_layers = 1 + max(player.layer for player in sublayers)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if n_layers / step <= most_ticks)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.set_xlim(-0.7, n_layers - 0.3)
    axes.set_xlabel("decoder layer")


def kind_legend(axes: Axes, players: Sequence[Player | Group], extra: Sequence[Line2D] = ()) -> None:
    """Say which colour and marker is which kind, above the axes' right end."""
    handles = [*kind_samples(players), *extra]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        ncols=len(handles),
        borderaxespad=0,
        columnspacing=1.2,
    )


def kind_samples(players: Sequence[Player | Group]) -> list[Line2D]:
    """Give a legend's sample of each kind that plays."""
    return [
        Line2D([], [], linestyle="", marker=MARKERS[kind], color=kind, label=word, markersize=4.5)
        for kind, word in kind_words(players).items()
    ]


def tame(axes: Axes, values: np.ndarray) -> str:
    """Use a scale that is linear near 0 and logarithmic beyond, where a few values dwarf the others; say so."""
    size = np.abs(values[np.isfinite(values)])
    if len(size) == 0 or size.max() <= _DOMINANT * max(np.median(size), 1e-12):
        return ""
    linear_to = _nice(max(np.quantile(size, 0.75), size.max() / 1000))
    low, high = axes.get_ylim()
    axes.set_yscale("symlog", linthresh=linear_to, linscale=1.0)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(_ticks(linear_to, low, high)))
    axes.yaxis.set_major_formatter(lambda value, place: minus(f"{value:g}"))
    axes.minorticks_off()
    return f"logarithmic beyond ±{linear_to:g}"


def _nice(value: float) -> float:
    """Round up to 1 or 3 times a power of ten."""
    decade = 10.0 ** np.floor(np.log10(value))
    return float(f"{next(step * decade for step in (1, 3, 10) if step * decade >= value * 0.999):.1g}")


def _ticks(linear_to: float, low: float, high: float) -> list[float]:
    """Mark 1 and 3 times powers of ten from the linear part's end on, both ways."""
    start = np.log10(linear_to)
    steps = [10.0**decade * factor for decade in range(int(np.floor(start)), 9) for factor in (1, 3)]
    known = [float(f"{step:.1g}") for step in steps if step >= linear_to * 0.999]
    return sorted([*(-step for step in known if step <= -low), 0.0, *(step for step in known if step <= high)])
