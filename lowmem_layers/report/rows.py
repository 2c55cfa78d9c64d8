"""Importance as rows of text: rounded, with intervals, the most important sublayer first."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lowmem_layers.game.answers.importance import Importance

Rows = list[list[str]]


def importance_rows(found: Importance, scale: float, unit: str) -> tuple[list[str], Rows]:
    """Lay out one task's importance: header and rows, by rank."""
    digits = 1 if scale == 100.0 else 2
    header = ["sublayer", f"estimate ({unit})", "95 %", f"ablation drop ({unit})", "95 %", "share (%)", "rank"]
    ci, drop_ci = found.ci.times(scale), found.ablation_ci.times(scale)
    rows = [
        [
            found.players[place],
            number(scale * found.value[place], digits),
            interval(ci.low[place], ci.high[place], digits),
            number(scale * found.ablation_drop[place], digits),
            interval(drop_ci.low[place], drop_ci.high[place], digits),
            number(100 * found.share[place], 1),
            number(found.rank[place], 0),
        ]
        for place in found.order()
    ]
    return header, rows


def text_rows(table: pa.Table) -> tuple[list[str], Rows]:
    """Lay any table out as text: numbers with one decimal, what is missing as a dash."""
    rows = [
        ["–" if cell is None else number(cell, 1) if isinstance(cell, float) else str(cell) for cell in row.values()]
        for row in table.to_pylist()
    ]
    return [name.replace("_", " ") for name in table.column_names], rows


def number(value: float, digits: int) -> str:
    """Write a number with a true minus sign kept plain for machines; what is none is a dash."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else str(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def p_value(value: float) -> str:
    """Write a p-value; one that rounds to 0 is below 0.001."""
    return "<0.001" if value < 0.0005 else number(value, 3)


def interval(low: float, high: float, digits: int) -> str:
    """Write an interval."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return "–"
    return f"[{number(low, digits)}, {number(high, digits)}]"
