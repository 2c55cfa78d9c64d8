"""Numbers as text: with a hyphen in columns, which programs read too; with a minus sign in sentences."""

from __future__ import annotations

import re
from math import isfinite, isnan

_HYPHEN_AS_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def number(value: float, digits: int) -> str:
    """Write a number with a hyphen as its minus, which programs read too; NaN is a dash, a rounded 0 has no sign."""
    if not isfinite(value):
        return "–" if isnan(value) else str(value)
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def p_value(value: float) -> str:
    """Write a p-value; one that rounds to 0 is below 0.001."""
    return "<0.001" if value < 0.0005 else number(value, 3)


def counted(count: int, thing: str) -> str:
    """Write how many there are: `1 item`, `2 items`, `1,000 tiles`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def interval(low: float, high: float, digits: int) -> str:
    """Write an interval; a dash where an end is not finite."""
    if not (isfinite(low) and isfinite(high)):
        return "–"
    return f"[{number(low, digits)}, {number(high, digits)}]"


def minus(text: str) -> str:
    """Replace hyphens before digits by minus signs, for readers."""
    return _HYPHEN_AS_MINUS.sub("−", text)
