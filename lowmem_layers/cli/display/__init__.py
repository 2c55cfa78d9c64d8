"""How a run is shown while it goes on: live, in lines, as JSON, or not at all."""

from __future__ import annotations

from lowmem_layers.cli.display.choose import DISPLAYS, choose_display

__all__ = ["DISPLAYS", "choose_display"]
