"""The one place where a display is chosen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from lowmem_layers.cli.display.protocol import Display, Silent

DISPLAYS = ("auto", "rich", "plain", "json", "none")


def choose_display(name: str, title: str, clock: Callable[[], float] = time.monotonic) -> Display:
    """Make the display asked for; `auto` is live on a terminal and lines elsewhere. All write to stderr.

    Raises:
        UsageError: there is no such display.
    """
    from lowmem_layers.record.spec import one_of

    one_of("--display", name, DISPLAYS)
    if name == "auto":
        name = "rich" if sys.stderr.isatty() else "plain"
    if name == "rich":
        from rich.console import Console

        from lowmem_layers.cli.display.live import LiveDisplay

        return LiveDisplay(Console(stderr=True), clock, title)
    if name == "plain":
        from lowmem_layers.cli.display.plain import PlainDisplay

        return PlainDisplay(sys.stderr, clock)
    if name == "json":
        from lowmem_layers.cli.display.jsonl import JsonDisplay

        return JsonDisplay(sys.stderr, clock)
    return Silent()
