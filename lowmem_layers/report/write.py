"""The report of a run: figures and tables as files, and a page that holds them all.

In go a run and its findings; out come `index.html`, `figures/` (SVG, PNG, PDF) and `tables/` (CSV, Markdown, LaTeX,
parquet).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from lowmem_layers.findings.findings import Findings, Side
from lowmem_layers.findings.importance import as_code, as_table
from lowmem_layers.findings.paper import paper_table
from lowmem_layers.findings.rows import importance_rows, text_rows
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.paper_tables import PaperTables
from lowmem_layers.record.files import cannot_write, make_folder, refuse_links, write_text
from lowmem_layers.record.folder import REPORT_FOLDER
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.report.figures import ablation_scatter, importance_bars, share_pie, window_map
from lowmem_layers.report.page.answer import leading_side
from lowmem_layers.report.page.data import allowed_values
from lowmem_layers.report.page.render import Listing, Picture, page
from lowmem_layers.report.pairs import interaction_map, interaction_rows
from lowmem_layers.report.style import FORMATS, paper_style, save
from lowmem_layers.report.table_formats import write_tables

PAGE = "index.html"
PAPER_WORDS = {
    1: "share of the sum of estimates that the top 3 sublayers have, and the others (%; negative estimates count as 0)",
    2: "the cornerstone sublayers of tables 1, 3 and 4, who named them, and the three largest mean shares here",
    3: "mean drop when one sublayer is removed (points; negative drops count as 0), of cornerstones and of the others",
    4: "mean drop when one sublayer that is no cornerstone is removed (points), on each task",
}


@dataclass(frozen=True)
class _Files:
    """The files of a report: its folder, and the formats of its figures."""

    folder: Path
    formats: Sequence[str]

    def draw(self, name: str, figure: Figure) -> None:
        """Save a figure."""
        save(figure, self.folder / "figures", name, self.formats)


def write_report(
    run: Run,
    output: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    every_value: bool = False,
) -> Path:
    """Write tables, figures and index.html; give the page's path.

    `formats` are those of the figures' files: svg (which the page needs), png and pdf (which take most of the time).
    With `every_value`, the page measures by every value that the items allow, not only by those of the findings; the
    tiles are read once for all.

    Raises:
        RecordError: the record is damaged, or the folder cannot be written.
    """
    values = allowed_values(run) if every_value else []
    run.values.collect(*values)
    findings = run.findings
    if output is None:
        refuse_links(run.folder / REPORT_FOLDER)
    files = _Files(Path(output) if output is not None else run.folder / REPORT_FOLDER, formats)
    tables = files.folder / "tables"
    make_folder(files.folder / "figures")
    make_folder(tables)
    listings: list[Listing] = []
    picture = None
    try:
        # 1) tables of importance: the numbers in full as parquet, rounded for papers
        for side in findings.sides:
            listed = as_table(side.found, as_code(side.tables, run.manifest.design))
            pq.write_table(listed, tables / f"importance-{side.value}.parquet", compression="zstd")
            for found in side.found:
                rows = importance_rows(found, side.scale, side.unit)
                write_tables(tables, f"{_slug(found.task)}-{side.value}", *rows)
        # 2) figures: the mean over tasks and task by task, each by one value after the other
        with paper_style():
            for side in findings.sides:
                for place in range(len(side.found)):
                    _draw_importance(run.manifest, findings, side, place, files)
        if findings.sides:
            picture = _still(leading_side(findings), files)
        # 3) the paper's tables, which are about accuracies of models that lack a window of sublayers
        if findings.paper is not None:
            listings = _paper_listings(findings.paper, tables)
    except OSError as error:
        raise cannot_write(Path(error.filename or files.folder), error) from error
    write_text(files.folder / PAGE, page([(run, findings)], picture, listings, values))
    return files.folder / PAGE


def _slug(task: str) -> str:
    """Make a task's name a file's name."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in task)


def _still(side: Side, files: _Files) -> Picture:
    """Take the figure of importance that the page shows without scripts."""
    found = side.overall
    svg = (files.folder / "figures" / f"{_slug(found.task)}-{side.value}-importance.svg").read_bytes()
    words = (
        f"Bars: {found.estimator} estimate of each sublayer's importance by {side.words} on {found.task}. "
        "Lines: 95 % intervals."
    )
    return Picture(svg, words)


def _draw_importance(manifest: Manifest, findings: Findings, side: Side, place: int, files: _Files) -> None:
    """Draw one task (or, with the last place, the mean over tasks) by one value."""
    found, design = side.found[place], manifest.design
    task, words, name = found.task, side.words, f"{_slug(found.task)}-{side.value}"
    files.draw(
        f"{name}-importance",
        importance_bars(design.players, found, side.scale, side.unit, f"{task}: importance by {words}"),
    )
    # 1) levels and windows, of one task: a mean over tasks with different chance levels would say little
    if place < len(side.tables):
        _draw_levels_and_windows(place, manifest, findings, side, name, files)
    # 2) shares
    files.draw(f"{name}-shares", share_pie(design.players, found, f"{task}: shares"))
    # 3) interactions of neighbours, where windows of two or more were removed; random orders hold some only by chance
    if side.interactions:
        between = side.interactions[place]
        rows = interaction_rows(between, side.scale, side.unit)
        write_tables(files.folder / "tables", f"{name}-interactions", *rows)
        title = f"{task}: interactions of neighbours"
        files.draw(f"{name}-interactions", interaction_map(design.players, between, side.scale, side.unit, title))


def _draw_levels_and_windows(
    place: int, manifest: Manifest, findings: Findings, side: Side, name: str, files: _Files
) -> None:
    """Draw one task's level without each player, and what each window of neighbours costs."""
    table, words, design, done = side.tables[place], side.words, manifest.design, manifest.change.words
    who = "group" if any(each.is_group for each in design.players) else "sublayer"
    # Chance is a level of the task's own metric, which is the first side's.
    chances = {each.task: each.chance for each in findings.tasks if side is findings.sides[0]}
    scatter = ablation_scatter(
        design.players,
        side.singles[place],
        side.full[place],
        side.scale,
        f"{words}\n({'%' if side.scale == 100.0 else side.unit})",
        f"{table.task}: one {who} {done}",
        chances.get(table.task),
    )
    title = f"{table.task}: what windows {done} cost"
    windows = window_map(design.players, table, side.scale, side.unit, title, done)
    files.draw(f"{name}-ablation", scatter)
    files.draw(f"{name}-windows", windows)


def _paper_listings(found: PaperTables, folder: Path) -> list[Listing]:
    """Lay out the paper's tables 1 to 4."""
    listings = []
    for which, words in PAPER_WORDS.items():
        header, rows = text_rows(paper_table(found, which))
        write_tables(folder, f"study-table-{which}", header, rows)
        listings.append(Listing(f"The study's table {which}: {words}", header, rows))
    return listings
