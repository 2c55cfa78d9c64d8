"""One run from its spec to its end: plan, tiles, record on disk, resume, events."""

from __future__ import annotations

from lowmem_layers.study.opened import Run, open_run
from lowmem_layers.study.run import run_study
from lowmem_layers.study.spec import StudySpec

__all__ = ["Run", "StudySpec", "open_run", "run_study"]
