"""What a display is: something that is entered, told events, and left."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from lowmem_layers.study.events import Event


class Display(Protocol):
    """Shows events on stderr; nothing depends on it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __call__(self, event: Event) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to leave."""

    def __call__(self, event: Event) -> None:
        """Look away."""
