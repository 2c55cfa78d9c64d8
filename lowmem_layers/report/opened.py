"""A run as a user of Python opens it: its record, what it found, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowmem_layers.findings import run as findings_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Run(findings_run.Run):
    """One run: its record, importance as a function of it, and figures."""

    def figures(self, value: str | None = None) -> dict[str, Figure]:
        """Draw figures for a paper: matplotlib figures by name, which a notebook shows and `savefig` writes.

        `value` is that of bars, maps, ranks and interactions: None for each task's own metric, or `loglikelihood`.
        """
        from lowmem_layers.report.paper import paper_figures  # matplotlib takes half a second

        return paper_figures([self], value)


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    opened = findings_run.open_run(path)
    return Run(opened.folder, opened.manifest)
