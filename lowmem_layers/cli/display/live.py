"""A live picture on a terminal, redrawn four times a second from the first moment on."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from lowmem_layers.cli.display.memory import Memory, read_memory
from lowmem_layers.cli.display.picture import draw
from lowmem_layers.cli.display.progress import Progress, advance, left
from lowmem_layers.cli.output import visible
from lowmem_layers.cli.spelled import Spelled
from lowmem_layers.study.events import Event, Noted


class LiveDisplay:
    """Keep a picture of the run on the terminal.

    A terminal that is gone (a closed window) ends the picture, never the run.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float],
        title: str,
        memory: Callable[[], Memory | None] = read_memory,
    ) -> None:
        self._clock = clock
        self._title = title
        self._memory = memory
        self._spinner = Spinner("line" if console.options.ascii_only else "dots", style="cyan")
        self._progress = Progress(started=clock())
        self._console = console
        self._live = _UntilClosed(console=console, get_renderable=self.picture, refresh_per_second=4, transient=False)
        self._logs = contextlib.ExitStack()

    def __enter__(self) -> Self:
        terminal = sys.stderr
        with contextlib.suppress(OSError):
            self._live.start(refresh=True)
        self._logs.enter_context(_logs_moved(terminal, sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress = left(self._progress, error)
        self._logs.close()
        with contextlib.suppress(OSError):
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take the event in; the next redraw shows it. A note stays on the screen, above the picture."""
        if isinstance(event, Noted):
            self._live.console.print(Spelled(Text(visible(f"note: {event.words}"), style="yellow")))
        self._progress = advance(self._progress, event, self._clock())

    def picture(self) -> RenderableType:
        """Draw the run's state, for the size that the terminal has now."""
        # One row less than there are: a picture that fills the screen would scroll.
        size = self._console.size.width, max(8, self._console.size.height - 1)
        picture = draw(self._progress, self._clock(), self._title, self._spinner, self._memory(), *size)
        return Spelled(picture)


class _UntilClosed(Live):
    """A live picture that does not complain, from its own thread, when its terminal is gone."""

    def refresh(self) -> None:
        with contextlib.suppress(OSError):
            super().refresh()


@contextlib.contextmanager
def _logs_moved(before: TextIO, now: TextIO) -> Iterator[None]:
    """Let libraries' log lines appear above the picture for the length of a `with` block.

    rich takes what is written to `sys.stderr`. A log handler made earlier (transformers makes one when it is imported)
    knows the terminal itself, and would write into the middle of the picture.
    """
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    moved = [each for each in handlers if isinstance(each, logging.StreamHandler) and each.stream is before]
    for handler in moved:
        handler.setStream(now)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(before)
