"""Writing the report of a run: tables and figures as files, and a page that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from lowmem_layers.game.estimate import Importance
from lowmem_layers.game.table import ValueTable
from lowmem_layers.report.figures import ablation_scatter, importance_bars, share_pie, window_map
from lowmem_layers.report.page import Picture, Section, page
from lowmem_layers.report.rows import importance_rows
from lowmem_layers.report.style import FORMATS, paper_style, save
from lowmem_layers.report.tables import write_tables
from lowmem_layers.study.files import cannot_write, make_folder, write_text
from lowmem_layers.study.findings import Findings, Side, coalition_means, find
from lowmem_layers.study.folder import REPORT_FOLDER
from lowmem_layers.study.importance import importance_table
from lowmem_layers.study.opened import Run

PAGE = "index.html"


def write_report(run: Run, output: str | Path | None = None, formats: Sequence[str] = FORMATS) -> Path:
    """Write tables, figures and index.html; give the page's path.

    `formats` are those of the figures' files: svg (which the page needs), png and pdf (which take most of the time).

    Raises:
        RecordError: the record is damaged, or the folder cannot be written.
    """
    folder = Path(output) if output is not None else run.folder / REPORT_FOLDER
    findings = find(run)
    make_folder(folder / "figures")
    make_folder(folder / "tables")
    try:
        sections = [] if findings is None else _sections(run, findings, folder, formats)
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error
    write_text(folder / PAGE, page(run, findings, sections))
    return folder / PAGE


@dataclass(frozen=True)
class _Place:
    """Where in a report a figure goes."""

    run: Run
    side: Side
    found: Importance
    folder: Path
    formats: Sequence[str]

    @property
    def name(self) -> str:
        """Begin file names with the task and the value."""
        task = "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in self.found.task)
        return f"{task}-{self.side.value}"

    def draw(self, kind: str, figure: Figure, words: str) -> Picture:
        """Save a figure and give what the page needs of it."""
        name = f"{self.name}-{kind}"
        save(figure, self.folder / "figures", name, self.formats)
        return Picture(
            (self.folder / "figures" / f"{name}.svg").read_bytes(), words, f"figures/{name}", tuple(self.formats)
        )


def _sections(run: Run, findings: Findings, folder: Path, formats: Sequence[str]) -> list[Section]:
    """Draw every task (their mean first) by both values."""
    sides = list(dict.fromkeys(findings.sides))
    n_tasks = len(findings.metric.found)
    with paper_style():
        for side in sides:
            _write_side_tables(side, folder / "tables")
        return [
            _section(_Place(run, side, side.found[place], folder, formats))
            for place in (-1, *range(n_tasks - 1))
            for side in sides
        ]


def _section(place: _Place) -> Section:
    side, found = place.side, place.found
    words = side.words
    title = f"{found.task}: importance by {words}"
    pictures = [
        place.draw(
            "importance",
            importance_bars(found, side.scale, side.unit, title),
            f"Bars: {found.estimator} estimate of every sublayer's importance by {words} on {found.task}; "
            f"lines: 95 % intervals.",
        )
    ]
    own = [table for table in side.tables if table.task == found.task]
    if own:
        pictures += _of_one_task(place, own[0])
    pictures.append(
        place.draw(
            "shares",
            share_pie(found, f"{found.task}: shares"),
            f"Share of the estimates' sum by {words}, negative ones clipped to 0; layer order, "
            "anti-clockwise from the top.",
        )
    )
    return Section(f"{found.task} by {words}", tuple(pictures))


def _of_one_task(place: _Place, table: ValueTable) -> list[Picture]:
    side, words, task = place.side, place.side.words, table.task
    singles = [(position,) for position in range(table.n_players)]
    single, full = coalition_means(table, singles), coalition_means(table, [()])
    chance = place.run.chance(task) if side.value in ("acc", "acc_norm") else None
    unit = "%" if side.scale == 100.0 else side.unit
    scatter = ablation_scatter(
        table.players, single, full, side.scale, f"{words}\n({unit})", f"{task}: one sublayer removed", chance
    )
    return [
        place.draw("ablation", scatter, f"The {words} on {task} with one sublayer removed; lines: 95 % intervals."),
        place.draw(
            "windows",
            window_map(table, side.scale, side.unit, f"{task}: what removing a window costs"),
            f"Loss of {words} on {task} for every window of neighbouring sublayers removed.",
        ),
    ]


def _write_side_tables(side: Side, folder: Path) -> None:
    """Write the numbers in full as CSV and parquet, and rounded tables for papers."""
    table = importance_table(side.tables)
    pq.write_table(table, folder / f"importance-{side.value}.parquet", compression="zstd")
    for found in side.found:
        header, rows = importance_rows(found, side.scale, side.unit)
        write_tables(folder, f"{found.task.replace('/', '-')}-{side.value}", header, rows)
