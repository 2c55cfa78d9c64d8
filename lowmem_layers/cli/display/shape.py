"""The answer while it forms, drawn in text: the leading sublayers as bars, and all decoder layers as a strip."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowmem_layers.cli.output import visible
from lowmem_layers.study.events import Standing

_SHADES = " ░▒▓█"
_ROLES = {"attn": "attention", "mixer": "attention", "ffn": "ffn", "moe": "ffn"}
_COLOURS = {"attention": "red", "ffn": "blue"}
_LABEL = 10  # columns before a strip
_WIDEST_CELL = 4


def role_of(player: str) -> tuple[str, int] | None:
    """Read a sublayer's name: its row in the strip and its decoder layer; None for a group of sublayers."""
    kind, _, layer = player.partition(".")
    return (_ROLES[kind], int(layer)) if kind in _ROLES and layer.isdecimal() else None


def colour_of(player: str) -> str:
    """Give attention, feed-forward and groups their colours."""
    role = role_of(player)
    return "green" if role is None else _COLOURS[role[0]]


def leading_bars(players: Sequence[str], standing: Standing, n_rows: int, width: int) -> Table:
    """Draw the largest values as bars: dark up to the interval's low end, lighter to the value and to its high end."""
    known = [place for place, value in enumerate(standing.value) if math.isfinite(value)]
    first = sorted(known, key=lambda place: -standing.value[place])[:n_rows]
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, max_width=24)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    longest = max((len(players[place]) for place in first), default=0)
    room = max(10, width - min(longest, 24) - 27)
    # The longest value takes two thirds of the room at least: a wide interval is cut off at the end of the bar.
    largest = max((standing.value[place] for place in first), default=0.0)
    highs = [standing.high[place] for place in first if math.isfinite(standing.high[place])]
    most = min(max([largest, *highs]), 1.5 * largest)
    for place in first:
        value, low, high = standing.value[place], standing.low[place], standing.high[place]
        is_known = math.isfinite(low) and math.isfinite(high)
        ends = [min(max(end, 0.0), most) for end in ((low, value, high) if is_known else (value, value, value))]
        dark, middle, light = (round(room * end / most) if most > 0 else 0 for end in ends)
        colour = colour_of(players[place])
        bar = Text("█" * dark + "▓" * (middle - dark) + "░" * (light - middle), style=colour)
        words = f"{value:.2f} [{low:.2f}, {high:.2f}]" if is_known else f"{value:.2f}"
        table.add_row(Text(visible(players[place]), style=colour), bar, Text(words.replace("-", "−")))
    return table


def layer_strip(players: Sequence[str], standing: Standing, width: int) -> list[Text]:
    """Draw all decoder layers in order: a row for attention, one for feed-forward, the darker the more important.

    Shades go by the root of the value, so that the small ones are seen too. Where there are more layers than columns,
    a column shows the largest of its layers. Groups of sublayers have no place in it.
    """
    places = [(role_of(player), value) for player, value in zip(players, standing.value, strict=True)]
    found = {role: value for role, value in places if role is not None and math.isfinite(value)}
    n_layers = 1 + max((layer for (_, layer) in found), default=-1)
    most = max(found.values(), default=0.0)
    if n_layers < 2 or most <= 0:
        return []
    room = width - _LABEL
    per_column = -(-n_layers // room)
    columns = -(-n_layers // per_column)
    cell = min(_WIDEST_CELL, max(1, room // columns))
    lines = []
    for role, colour in _COLOURS.items():
        line = Text(f"{role:<{_LABEL}}", style="dim", no_wrap=True)
        for column in range(columns):
            layers = range(column * per_column, min((column + 1) * per_column, n_layers))
            value = max((found.get((role, layer), 0.0) for layer in layers), default=0.0)
            level = math.ceil((len(_SHADES) - 1) * math.sqrt(max(0.0, value) / most))
            line.append(_SHADES[level] * cell, style=colour)
        lines.append(line)
    last = str(n_layers - 1)
    axis = "layer".ljust(_LABEL) + "0".ljust(max(1, columns * cell - len(last))) + last
    return [*lines, Text(axis, style="dim", no_wrap=True)]
