"""The figure of what pruned and mixed models lose on held-out items: measured, foreseen, at random, by a proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lowmem_layers.report.style import FEED_FORWARD, QUIET, new_figure, paper_style, save

_LINES = {
    "record": (FEED_FORWARD, "o", "by the record"),
    "block influence": ("#D55E00", "s", "by block influence"),
    "random": (QUIET, "^", "at random"),
}
_LABELS = {"removed": "sublayers removed", "mixed": "bits a weight"}


def draw(models: list[dict[str, Any]], folder: Path) -> None:
    """Draw a column for each model: removals above, mixtures below; write `acted.png`."""
    with paper_style():
        kinds = [kind for kind in _LABELS if any(each["kind"] == kind for model in models for each in model["rows"])]
        figure = new_figure(2.6 * len(kinds) + 0.4, max(4.4, 3.45 * len(models)))
        axes = figure.subplots(len(kinds), len(models), squeeze=False)
        for column, model in enumerate(models):
            for row, kind in enumerate(kinds):
                if of := [each for each in model["rows"] if each["kind"] == kind]:
                    _panel(axes[row, column], of, kind)
                else:
                    axes[row, column].set_axis_off()
            n_items = model["rows"][0]["n_items"]
            axes[0, column].set_title(f"{model['model']}, {n_items} held-out items", fontsize=8)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(models))
        save(figure, folder, "acted", ("png",))


def _panel(axes: Axes, rows: list[dict[str, Any]], kind: str) -> None:
    """Draw measured losses with their intervals, and what was foreseen of the record's choices."""
    for way, (colour, marker, label) in _LINES.items():
        of = sorted((row for row in rows if row["way"] == way), key=lambda row: row["x"])
        x, y = [row["x"] for row in of], [row["loss"] for row in of]
        ends = [
            [row["loss"] - row["loss_ci_low"] for row in of],
            [row["loss_ci_high"] - row["loss"] for row in of],
        ]
        axes.errorbar(x, y, ends, color=colour, marker=marker, markersize=3.5, linewidth=1, elinewidth=0.7, label=label)
        if way == "record":
            seen = [row["foreseen"] for row in of]
            axes.plot(x, seen, color=colour, marker="_", linestyle="none", markersize=9, label="foreseen of these")
    for row in rows:
        if row["way"].startswith("all "):
            axes.plot(row["x"], row["loss"], color="#222222", marker="x", markersize=4, linestyle="none")
            axes.annotate(row["way"].removeprefix("all "), (row["x"], row["loss"]), xytext=(3, 4), fontsize=6,
                          textcoords="offset points")  # fmt: skip
    axes.axhline(0, color=QUIET, linewidth=0.6)
    axes.set_yscale("symlog", linthresh=0.5)
    axes.yaxis.set_major_locator(FixedLocator([-10, -3, -1, -0.3, 0, 0.3, 1, 3, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "\u2212")))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(_LABELS[kind])
    axes.set_ylabel("loss (nats)")
