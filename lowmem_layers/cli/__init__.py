"""The commands and the display: the only place where rooms are put together."""

from __future__ import annotations

from lowmem_layers.cli.entry import main

__all__ = ["main"]
