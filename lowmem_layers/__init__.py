"""Which sublayers of a language model matter? Shapley values and ablations on hardware people own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowmem_layers._version import __version__

if TYPE_CHECKING:
    from lowmem_layers.study import Run, StudySpec, open_run, run_study

__all__ = ["Run", "StudySpec", "__version__", "open_run", "run_study"]


def __getattr__(name: str) -> Any:
    """Import the rest only when it is asked for: `import lowmem_layers` stays instant."""
    if name not in ("Run", "StudySpec", "open_run", "run_study"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lowmem_layers import study

    return getattr(study, name)
