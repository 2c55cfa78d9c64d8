"""Signs that a terminal's encoding lacks (cp1252, ASCII), replaced in whatever rich shows."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lowmem_layers.cli.output import spelled_for


class Spelled:
    """Show what another renderable shows, with signs that the terminal's encoding has."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._renderable, options):
            yield Segment(spelled_for(options.encoding, segment.text), segment.style, segment.control)
