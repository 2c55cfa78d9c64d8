"""Writing the report of a run: tables and figures as files, and a page that holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from matplotlib.figure import Figure

from lowmem_layers.findings.findings import Findings, Side, coalition_means, find
from lowmem_layers.findings.importance import as_table
from lowmem_layers.findings.paper import paper_table, tables_of
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.answers.interactions import interactions
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.files import cannot_write, make_folder, write_text
from lowmem_layers.record.folder import REPORT_FOLDER
from lowmem_layers.report.figures import ablation_scatter, importance_bars, share_pie, window_map
from lowmem_layers.report.page import Listing, Picture, Section, page
from lowmem_layers.report.pairs import N_STRONGEST, interaction_map, interaction_rows
from lowmem_layers.report.rows import importance_rows, text_rows
from lowmem_layers.report.style import FORMATS, paper_style, save
from lowmem_layers.report.table_formats import write_tables

PAGE = "index.html"
PAPER_WORDS = {
    1: "share of the top 3 sublayers' estimates in the sum (%, clipped at 0), and the other sublayers'",
    2: "cornerstone sublayers of tables 1, 3 and 4, whose list that is, and the three largest mean shares here",
    3: "mean drop after removing one sublayer (points, clipped at 0): cornerstones, others",
    4: "mean drop after removing one sublayer that is no cornerstone (points), task by task",
}


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
        sections = [] if findings is None else [*_sections(run, findings, folder, formats), *_study(run, folder)]
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

    @property
    def own_tables(self) -> list[ValueTable]:
        """Take the task's table, or all of them for the mean over tasks."""
        own = [table for table in self.side.tables if table.task == self.found.task]
        return own or list(self.side.tables)

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
            importance_bars(place.run.manifest.design.players, found, side.scale, side.unit, title),
            f"Bars: {found.estimator} estimate of every sublayer's importance by {words} on {found.task}; "
            f"lines: 95 % intervals.",
        )
    ]
    own = place.own_tables
    if len(own) == 1:
        pictures += _of_one_task(place, own[0])
    pictures.append(
        place.draw(
            "shares",
            share_pie(place.run.manifest.design.players, found, f"{found.task}: shares"),
            f"Share of the estimates' sum by {words}, negative ones clipped to 0; layer order, "
            "anti-clockwise from the top.",
        )
    )
    between = _interactions(place, own)
    return Section(
        f"{found.task} by {words}", (*pictures, *(pair[0] for pair in between)), tuple(pair[1] for pair in between)
    )


def _interactions(place: _Place, tables: list[ValueTable]) -> list[tuple[Picture, Listing]]:
    """Draw and list the interactions of neighbours, where windows of two or more were removed."""
    walked = place.run.manifest.design.coalitions == "permutations"  # which holds some windows by chance
    if walked or largest_window(tables[0].coalitions, tables[0].n_players) < 2:
        return []
    side, task = place.side, place.found.task
    found = interactions(tables)
    write_tables(place.folder / "tables", f"{place.name}-interactions", *interaction_rows(found, side.scale, side.unit))
    picture = place.draw(
        "interactions",
        interaction_map(
            place.run.manifest.design.players, found, side.scale, side.unit, f"{task}: interactions of neighbours"
        ),
        f"Second-order differences of {side.words} on {task}: negative (blue), the two cover for each other "
        "(redundancy); positive (red), losing one leaves less to lose with the other (synergy); dots: significant "
        "after Holm's correction.",
    )
    n_sure = int(found.significant.sum())
    words = f"The surest of {len(found.value)} pairs on {task} by {side.words}; significant together at 95 %: {n_sure}."
    return [(picture, Listing(words, *interaction_rows(found, side.scale, side.unit, N_STRONGEST)))]


def _study(run: Run, folder: Path) -> list[Section]:
    """Lay out the study's tables 1 to 4, where every task is judged by an accuracy."""
    game = run.manifest.design
    by_accuracy = all(run.metric(task) in ("acc", "acc_norm") for task in run.tasks)
    if game.coalitions != "windows" or game.grouping is not None or not by_accuracy:
        return []
    found, listings = tables_of([run]), []
    for which, words in PAPER_WORDS.items():
        header, rows = text_rows(paper_table(found, which))
        write_tables(folder / "tables", f"study-table-{which}", header, rows)
        listings.append(Listing(f"Table {which}: {words}.", header, rows))
    return [Section("The study's tables 1 to 4", (), tuple(listings))]


def _of_one_task(place: _Place, table: ValueTable) -> list[Picture]:
    side, words, task = place.side, place.side.words, table.task
    singles = [(position,) for position in range(table.n_players)]
    single, full = coalition_means(table, singles), coalition_means(table, [()])
    chance = place.run.chance(task) if side.value in ("acc", "acc_norm") else None
    unit = "%" if side.scale == 100.0 else side.unit
    who = "sublayer" if place.run.manifest.design.grouping is None else "player"
    players = place.run.manifest.design.players
    scatter = ablation_scatter(
        players, single, full, side.scale, f"{words}\n({unit})", f"{task}: one {who} removed", chance
    )
    return [
        place.draw("ablation", scatter, f"The {words} on {task} with one {who} removed; lines: 95 % intervals."),
        place.draw(
            "windows",
            window_map(players, table, side.scale, side.unit, f"{task}: what removing a window costs"),
            f"Loss of {words} on {task} for every window of neighbouring sublayers removed.",
        ),
    ]


def _write_side_tables(side: Side, folder: Path) -> None:
    """Write the numbers in full as CSV and parquet, and rounded tables for papers."""
    table = as_table(side.found)
    pq.write_table(table, folder / f"importance-{side.value}.parquet", compression="zstd")
    for found in side.found:
        header, rows = importance_rows(found, side.scale, side.unit)
        write_tables(folder, f"{found.task.replace('/', '-')}-{side.value}", header, rows)
