"""One JSON object an event, for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Self, TextIO

from lowmem_layers.cli.display.progress import Progress, advance
from lowmem_layers.study.events import Event


class JsonDisplay:
    """Write every event as one line, with the time since the start, the share done and the seconds left."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._progress = Progress(started=clock())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to leave."""

    def __call__(self, event: Event) -> None:
        """Write the event."""
        now = self._clock()
        self._progress = advance(self._progress, event, now)
        left = self._progress.left_s(now)
        line = {
            "event": type(event).__name__,
            "time_s": round(now - self._progress.started, 3),
            "fraction": round(self._progress.fraction, 6),
            "left_s": None if left is None else round(left, 1),
            **asdict(event),
        }
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
