"""One run from its spec to its end: plan, tiles, record on disk, resume, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowmem_layers.study.opened import Run, open_run
    from lowmem_layers.study.run import run_study
    from lowmem_layers.study.spec import StudySpec

_HOMES = {"Run": "opened", "open_run": "opened", "run_study": "run", "StudySpec": "spec"}

__all__ = ["Run", "StudySpec", "open_run", "run_study"]


def __getattr__(name: str) -> Any:
    """Import what needs pyarrow only when it is asked for."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
