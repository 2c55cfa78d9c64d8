"""A run, opened: its record, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from lowmem_layers.findings.importance import N_TOP, importance_table
from lowmem_layers.record.run import RunRecord
from lowmem_layers.record.run_json import read_manifest


@dataclass(frozen=True)
class Run(RunRecord):
    """One run: its record, and importance as a function of it."""

    def importance(
        self, value: str | None = None, estimator: str | None = None, level: float = 0.95, top: int = N_TOP
    ) -> pa.Table:
        """Estimate every player's importance, a row a task and player, plus task `all` (mean) for several tasks.

        `estimator` None is the one that the measured coalitions are meant for; the column `top` says which players are
        certainly in or out of the first `top`, at `level` each.

        Raises:
            UsageError: an unknown value or estimator, or one that needs coalitions that were not measured.
            RecordError: a file is damaged.
        """
        return importance_table(self.value_tables(value), self.manifest.design, estimator, level, top)


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    folder = Path(path)
    return Run(folder, read_manifest(folder))
