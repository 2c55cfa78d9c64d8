"""The one place where a display is chosen."""

from __future__ import annotations

import os
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

    `auto` is Jupyter's own output in a notebook, `rich` on a terminal that can move its cursor, and `plain` elsewhere.

    Raises:
        UsageError: there is no such display.
    """
    from lowmem_layers.record.spec import one_of

    one_of("--display", name, DISPLAYS)
    if name == "auto" and "IPython" in sys.modules:
        from lowmem_layers.cli.display.notebook import NotebookDisplay, in_notebook

        if in_notebook():
            return NotebookDisplay(clock, title)
    if name == "auto":
        is_plain = not sys.stderr.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        name = "plain" if is_plain else "rich"
    # rich is imported only where it is used: it takes longer than all the rest.
    if name == "rich":
        from rich.console import Console

        from lowmem_layers.cli.display.live import LiveDisplay

        return LiveDisplay(Console(stderr=True), clock, title)
    from lowmem_layers.cli.display.lines import JsonDisplay, PlainDisplay

    if name == "none":
        return nullcontext(ignore)
    return nullcontext(PlainDisplay(sys.stderr, clock) if name == "plain" else JsonDisplay(sys.stderr, clock))


def watch(title: str = "lowmem-layers") -> AbstractContextManager[Announce]:
    """Show a run of one's own program, in a notebook or a terminal.

    `with watch() as announce: run_study(spec, announce=announce)`
    """
    return choose_display("auto", title)
