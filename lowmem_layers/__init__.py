"""Which sublayers of a language model matter? Shapley values and ablations on hardware people own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowmem_layers._version import __version__

if TYPE_CHECKING:
    from lowmem_layers.cli.display.choose import watch
    from lowmem_layers.record.spec import StudySpec
    from lowmem_layers.report.opened import Run, open_run
    from lowmem_layers.study.run import run_study

_HOMES = {
    "Run": "lowmem_layers.report.opened",
    "StudySpec": "lowmem_layers.record.spec",
    "open_run": "lowmem_layers.report.opened",
    "run_study": "lowmem_layers.study.run",
    "watch": "lowmem_layers.cli.display.choose",
}

__all__ = ["Run", "StudySpec", "__version__", "open_run", "run_study", "watch"]


def __getattr__(name: str) -> Any:
    """Import the rest only when it is asked for: `import lowmem_layers` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
