"""The picture of a run in a notebook's cell, updated in place by Jupyter's own display."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from lowmem_layers.cli.display.memory import Memory, read_memory
from lowmem_layers.cli.display.picture import draw
from lowmem_layers.cli.display.progress import Progress, advance, left
from lowmem_layers.study.events import Event, WorkDone

_WIDTH, _HEIGHT = 100, 40
_FRAME = '<pre style="line-height: 1.2; overflow-x: auto">{code}</pre>'


def in_notebook() -> bool:
    """Tell whether this code runs in a Jupyter kernel, whose output cells show HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _jupyters_display() -> Callable[..., Any]:
    # IPython is there wherever a notebook runs, and is no dependency elsewhere.
    return import_module("IPython.display").display


class NotebookDisplay:
    """Redraw the picture at most once in `every_s` seconds, when something happens.

    `show` puts the first picture into the cell and gives the handle that replaces it (IPython's `display`).
    """

    def __init__(
        self,
        clock: Callable[[], float],
        title: str,
        every_s: float = 0.5,
        memory: Callable[[], Memory | None] = read_memory,
        show: Callable[..., Any] | None = None,
    ) -> None:
        self._show = show or _jupyters_display()
        self._clock = clock
        self._title = title
        self._every_s = every_s
        self._memory = memory
        self._progress = Progress(started=clock())
        self._last = clock()
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._handle = self._show(self, display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress = left(self._progress, error)
        self._handle.update(self)

    def __call__(self, event: Event) -> None:
        """Take the event in, and redraw unless that was done a moment ago."""
        now = self._clock()
        self._progress = advance(self._progress, event, now)
        if now - self._last >= self._every_s or not isinstance(event, WorkDone):
            self._last = now
            self._handle.update(self)

    def _repr_html_(self) -> str:
        """Draw the picture as HTML: what Jupyter asks an object for."""
        console = self._drawn()
        return console.export_html(inline_styles=True, code_format=_FRAME)

    def __repr__(self) -> str:
        """Draw it as text, for notebooks that are shown without HTML."""
        return self._drawn().export_text()

    def _drawn(self) -> Console:
        console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False)
        mark = Text("▶", style="cyan")
        console.print(draw(self._progress, self._clock(), self._title, mark, self._memory(), _WIDTH, _HEIGHT))
        return console
