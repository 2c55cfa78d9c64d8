"""The one place where a display is chosen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from lowmem_layers.study.events import Announce, ignore

DISPLAYS = ("auto", "rich", "plain", "json", "none")


def choose_display(
    name: str, title: str, clock: Callable[[], float] = time.monotonic
) -> AbstractContextManager[Announce]:
    """Make the display that was asked for: entered, it gives the function that shows events, on stderr.

    `auto` is `rich` on a terminal and `plain` elsewhere.

    Raises:
        UsageError: there is no such display.
    """
    from lowmem_layers.record.spec import one_of

    one_of("--display", name, DISPLAYS)
    if name == "auto":
        name = "rich" if sys.stderr.isatty() else "plain"
    # rich is imported only where it is used: it takes longer than all the rest.
    if name == "rich":
        from rich.console import Console

        from lowmem_layers.cli.display.live import LiveDisplay

        return LiveDisplay(Console(stderr=True), clock, title)
    from lowmem_layers.cli.display.lines import JsonDisplay, PlainDisplay

    if name == "plain":
        return nullcontext(PlainDisplay(sys.stderr, clock))
    return nullcontext(JsonDisplay(sys.stderr, clock) if name == "json" else ignore)
