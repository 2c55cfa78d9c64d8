"""The figure of the bias study: neighbourhood estimates against random windows, and against exact values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lowmem_layers.game.players.player import parse_player
from lowmem_layers.report.style import QUIET, colour, new_figure, paper_style, save

UNITS = {"loglikelihood": "nats", "probability": "probability", "metric": "accuracy"}
SHOWN = ("loglikelihood", "probability")
LINES = {
    "shapley": ("#222222", "exact Shapley value", "o"),
    "up to four": ("#999999", "exact, up to four removed", "D"),
    "neighbourhood": ("#0072B2", "neighbourhood estimate", "s"),
    "ablation": ("#D55E00", "single removal", "x"),
}


def draw_bias(results: dict[str, Any], folder: Path) -> None:
    """Draw both comparisons for two values, and write `bias.svg` and `bias.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    with paper_style():
        figure = new_figure(5.2)
        axes = figure.subplots(2, len(SHOWN))
        for column, value in enumerate(SHOWN):
            _scatter(axes[0, column], results[value]["sublayers"], value)
            _groups(axes[1, column], results[value]["groups"], value)
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES))
        save(figure, folder, "bias", ("svg", "png"))


def _scatter(axes: Axes, found: dict[str, Any], value: str) -> None:
    """Draw each sublayer: random windows along x, neighbours along y, both with 95 % intervals (cut at the edges)."""
    x, y = (np.array(found["value"][name]) for name in ("random windows", "neighbourhood"))
    low, high = found["low"], found["high"]
    axes.hlines(y, low["random windows"], high["random windows"], color="#dddddd", linewidth=0.5, zorder=1)
    axes.vlines(x, low["neighbourhood"], high["neighbourhood"], color="#dddddd", linewidth=0.5, zorder=1)
    axes.scatter(x, y, s=12, c=[colour(parse_player(name)) for name in found["players"]], linewidths=0, zorder=2)
    span = [min(x.min(), y.min()), max(x.max(), y.max())]
    room = 0.12 * (span[1] - span[0])
    for place, index in enumerate(np.argsort(-y)[:3]):
        is_right = place == 1
        axes.annotate(
            found["players"][index],
            (x[index], y[index]),
            xytext=(5, 4) if is_right else (-6, 2),
            ha="left" if is_right else "right",
            textcoords="offset points",
        )
    axes.axline((0, 0), slope=1, color=QUIET, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.set_xlim(span[0] - room, span[1] + room)
    axes.set_ylim(span[0] - room, span[1] + room)
    rho, least, most = found["agreement"]["neighbourhood / random windows"]["spearman"]
    axes.set_title(f"60 sublayers: Spearman {rho:.2f} [{least:.2f}, {most:.2f}]", fontsize=8)
    axes.set_xlabel(f"any sets of up to four removed ({UNITS[value]})")
    axes.set_ylabel("only neighbours removed")


def _groups(axes: Axes, found: dict[str, Any], value: str) -> None:
    """Draw every estimator over the 12 groups; nats on a scale that is logarithmic beyond 1."""
    x = np.arange(len(found["players"]))
    for name, (line, words, marker) in LINES.items():
        axes.plot(x, found["value"][name], color=line, marker=marker, markersize=3.5, linewidth=0.9, label=words)
    drawn = np.array([found["value"][name] for name in LINES])
    low, high = np.array(found["low"]["shapley"]), np.array(found["high"]["shapley"])
    room = 0.15 * (drawn.max() - drawn.min())
    low, high = np.maximum(low, drawn.min() - room), np.minimum(high, drawn.max() + room)
    axes.fill_between(x, low, high, color="#222222", alpha=0.12, linewidth=0)
    axes.axhline(0, color=QUIET, linewidth=0.6)
    if value == "loglikelihood":
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set_xticks(x, [str(place + 1) for place in x])
    axes.set_xlabel("group of five consecutive sublayers")
    axes.set_ylabel(UNITS[value])
    whole, part = (found["agreement"][f"neighbourhood / {name}"]["spearman"][0] for name in ("shapley", "up to four"))
    axes.set_title(f"12 groups: Spearman {whole:.2f} (up to four: {part:.2f})", fontsize=8)
