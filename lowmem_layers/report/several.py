"""The report of several runs: one page for all of them, and each other run against the first as figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import comparison_table
from lowmem_layers.findings.rows import text_rows
from lowmem_layers.findings.run import Run
from lowmem_layers.record.files import make_folder, write_text
from lowmem_layers.report.compared import draw_comparison
from lowmem_layers.report.page.comparisons import compare_all
from lowmem_layers.report.page.render import Picture, page
from lowmem_layers.report.style import FORMATS
from lowmem_layers.report.table_formats import write_tables
from lowmem_layers.report.write import PAGE


def write_joint_report(runs: Sequence[Run], output: str | Path, formats: Sequence[str] = FORMATS) -> Path:
    """Write one page about several runs, with a figure and a table of what differs from the first; give its path.

    Raises:
        UsageError: a run of the full model only, which has nothing to compare.
        RecordError: a record is damaged, or the folder cannot be written.
    """
    for run in runs:
        if not run.findings.sides:
            raise UsageError(f"{run.folder} measured the full model only", "leave it out, or report it on its own")
    folder = Path(output)
    make_folder(folder / "figures")
    make_folder(folder / "tables")
    compared = compare_all(runs)
    picture = None
    for place, each in enumerate(compared):
        for nth, (found, side) in enumerate(zip(each.found, runs[0].findings.sides, strict=True)):
            if not found:
                continue
            name, value = f"1-against-{place + 2}-{side.value}", side.value if nth else None
            for form in formats:
                draw_comparison(runs[0], runs[place + 1], found, value, folder / "figures" / f"{name}.{form}")
            write_tables(folder / "tables", name, *text_rows(comparison_table(found)))
            if picture is None and "svg" in formats:
                svg = (folder / "figures" / f"{name}.svg").read_bytes()
                picture = Picture(svg, f"{each.a} against {each.b}, by {side.words}: estimates above, A − B below.")
    pages = page([(run, run.findings) for run in runs], picture, [], compared=compared)
    write_text(folder / PAGE, pages)
    return folder / PAGE
