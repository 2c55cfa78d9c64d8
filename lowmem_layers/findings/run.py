"""A run, opened: its record, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import pyarrow as pa

from lowmem_layers.errors import LowmemLayersError
from lowmem_layers.findings.findings import Findings, compute_findings
from lowmem_layers.findings.importance import N_TOP, as_code, as_table, estimates
from lowmem_layers.findings.rows import Rows, importance_rows, level_rows
from lowmem_layers.model.change import REMOVE
from lowmem_layers.record.run import RunRecord
from lowmem_layers.record.run_json import read_manifest

_SHOWN = 8  # rows of the table that a run shows of itself


@dataclass(frozen=True, repr=False)
class Run(RunRecord):
    """One run: its record, and importance as a function of it.

    Printed, or at the end of a notebook's cell, it shows itself in five lines and a table of its top sublayers.
    """

    def importance(
        self, value: str | None = None, estimator: str | None = None, level: float = 0.95, top: int = N_TOP
    ) -> pa.Table:
        """Estimate every player's importance: one row for each task and player, and for the mean over tasks (`all`).

        `estimator` None is the one for which the coalitions were measured; the column `top` says which players are
        certainly in or out of the first `top`, at `level` each. Beside the estimates of accuracies stand those of the
        authors' public code, to its last digit (`value_as_code`, `share_as_code`).

        Raises:
            UsageError: an unknown value or estimator, or one that needs coalitions that were not measured.
            RecordError: a file is damaged.
        """
        tables, design = self.value_tables(value), self.manifest.design
        return as_table(estimates(tables, design, estimator, level, top), as_code(tables, design))

    @cached_property
    def findings(self) -> Findings:
        """Remember what the run found; it is computed when it is first asked for."""
        return compute_findings(self)

    def __repr__(self) -> str:
        """Show the run in five lines, and its top sublayers in a table."""
        lines, caption, header, rows = self._shown()
        if not rows:
            return _printable("\n".join(lines))
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        table = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
        ]
        return _printable("\n".join([*lines, "", caption, *table]))

    def _repr_html_(self) -> str:
        """Show the same in a notebook."""
        lines, caption, header, rows = self._shown()
        html = "<br>".join(map(escape, lines))
        if rows:
            head = "".join(f"<th>{escape(name)}</th>" for name in header)
            body = "".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + f"<td>{bar}</td></tr>"
                for row, bar in zip(rows, _bars([row[1] for row in rows]), strict=True)
            )
            html += f"<table><caption>{escape(caption)}</caption><tr>{head}<th></th></tr>{body}</table>"
        return html

    def _shown(self) -> tuple[list[str], str, list[str], Rows]:
        """Say what the run is in five lines; name and lay out its top sublayers, by the log-likelihood."""
        manifest, design = self.manifest, self.manifest.design
        who = "groups of sublayers" if design.grouping is not None else "sublayers"
        lines = [
            f"Run {self.folder}: {manifest.status}",
            f"{manifest.model.id}, {manifest.model.dtype}, quantisation {manifest.packing}",
            f"{len(design.players)} {who}, {len(manifest.plan.coalitions):,} coalitions ({design.coalitions})"
            f"{'' if manifest.change == REMOVE else f', {manifest.change.words}'}",
        ]
        try:
            done = f"{self.n_items_done:,} of {manifest.n_items:,} items of {', '.join(self.tasks)}"
            found = self.findings
        except LowmemLayersError as error:  # what cannot be computed does not keep a run from being looked at
            return (
                [*lines, f"{manifest.n_items:,} items of {', '.join(self.tasks)}", f"no findings: {error.message}"],
                "",
                [],
                [],
            )
        _, levels = level_rows(found.tasks)
        lines += [done, "; ".join(f"{task}: {metric} {level}" for task, _, metric, level, _ in levels)]
        if not found.sides:
            return lines, "", [], []
        shown = found.sides[-1]
        header, rows = importance_rows(shown.overall, shown.scale, shown.unit)
        return (
            lines,
            f"importance by {shown.words} ({shown.overall.task}), the {min(_SHOWN, len(rows))} largest",
            header,
            rows[:_SHOWN],
        )


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    folder = Path(path)
    return Run(folder, read_manifest(folder))


def _bars(cells: Sequence[str]) -> list[str]:
    """Draw estimates as bars of HTML, the largest of full length; none for what costs nothing or is unknown."""
    sizes = [0.0 if cell == "–" else max(float(cell), 0.0) for cell in cells]
    style = "height:0.8em;background:#00528a"
    return [f'<div style="width:{120 * size / max(*sizes, 1e-9):.0f}px;{style}"></div>' for size in sizes]


def _printable(text: str) -> str:
    """Replace what a terminal would obey instead of showing: names come from data."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
