"""From a checkpoint to decoder layers that can be visited one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowmem_layers.model.spec import EMBEDDED_MODEL, ModelSpec, format_bytes, parse_bytes

if TYPE_CHECKING:
    from lowmem_layers.model.load import load_model

_LAZY = {"load_model": "lowmem_layers.model.load"}

__all__ = ["EMBEDDED_MODEL", "ModelSpec", "format_bytes", "load_model", "parse_bytes"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
