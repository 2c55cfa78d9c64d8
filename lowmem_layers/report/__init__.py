"""From the record to tables, figures and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowmem_layers.report.several import write_joint_report
    from lowmem_layers.report.write import write_report

_HOMES = {
    "write_joint_report": "lowmem_layers.report.several",
    "write_report": "lowmem_layers.report.write",
}

__all__ = ["write_joint_report", "write_report"]


def __getattr__(name: str) -> Any:
    """Import what draws only when it is asked for: a run is opened without waiting for matplotlib."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
