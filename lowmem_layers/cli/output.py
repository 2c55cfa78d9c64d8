"""Write data to stdout or a file: as a table, CSV, JSON, parquet, or a table for a paper (Markdown, LaTeX)."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from lowmem_layers.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from lowmem_layers.findings.run import Run

FORMATS = ("table", "csv", "json", "parquet", "markdown", "latex")
_SUFFIXES = {
    ".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table", ".md": "markdown", ".tex": "latex",
}  # fmt: skip
_SHOWN_ROWS = 200
SUMMARY_ROWS = 10  # sublayers in the table at the end of a run
_BATCH_ROWS = 50_000  # as Python objects at a time
_PLAIN_SIGNS = dict(zip("█▓▒░✓■━╸╺─–−·×…±", "#=-.+*-------x.~", strict=True))
# What JSON may hold as it is, but a terminal obeys: controls of eight bits, marks that turn the direction of writing
_OBEYED = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_CONTROL = re.compile(rf"[\x00-\x1f]|{_OBEYED.pattern}")


def json_line(record: dict[str, Any]) -> str:
    """Write a record as JSON in one line, readable and without signs that a terminal obeys."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(record, ensure_ascii=False))


def visible(text: str) -> str:
    """Spell control characters out, so that a terminal shows them and does not obey them: names come from data."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1] if found[0] > "\xff" else f"\\x{ord(found[0]):02x}", text)


def say(line: str) -> None:
    """Write one line for people, to stderr: whatever names are in it, no terminal obeys them."""
    click.echo(visible(line), err=True)


def visible_lines(text: str) -> str:
    """Do the same for a text of several lines."""
    return "\n".join(map(visible, text.splitlines()))


def spelled_for(encoding: str, text: str) -> str:
    """Replace signs that a terminal's encoding lacks, each by one that it has, so that no column moves."""
    if encoding.lower().startswith("utf"):
        return text
    signs = (sign if _has(encoding, sign) else _PLAIN_SIGNS.get(sign, "?") for sign in text)
    return "".join(signs)


def _has(encoding: str, sign: str) -> bool:
    try:
        sign.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return sign.isascii()
    return True


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format and -o to a data command."""
    file = click.option("-o", "--output", metavar="FILE", help="Write the data to this file. [default: stdout]")
    form = click.option(
        "--format",
        "form",
        metavar="|".join(FORMATS),
        help="Format of the data. [default: by the file's ending, else table]",
    )
    return form(file(command))


def note_unfinished(*runs: Run) -> None:
    """Say on stderr which of these runs hold only a part of their items."""
    for run in runs:
        if run.is_unfinished:
            done, total = run.n_items_done, run.manifest.n_items
            say(f"note: {run.folder} is unfinished: {done} of {total} items are in it")


def note_chance(value: str | None, *runs: Run) -> None:
    """Say on stderr, before the numbers, where accuracies may be those of guessing."""
    from lowmem_layers.findings.findings import chance_line

    for run in runs:
        if line := chance_line(run, value):
            say(f"note: {run.folder}: {line}")


def chosen_format(form: str | None, output: str | None) -> str:
    """Take the format asked for, else the one of the file's ending.

    Raises:
        UsageError: unknown format.
    """
    from lowmem_layers.record.spec import one_of

    one_of("--format", form, FORMATS)
    return form or _SUFFIXES.get(Path(output or "").suffix.lower(), "table")


def write_data(table: pa.Table, form: str | None, output: str | None, decimals: int = 4) -> None:
    """Write a table in the format asked for; `decimals` are those of tables for people.

    Raises:
        UsageError: unknown format, a file that cannot be written, or parquet to a terminal.
    """
    form = chosen_format(form, output)
    if output is not None:
        try:
            with Path(output).open("wb") as file:
                _write(table, form, file, decimals)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}", "choose another file with -o") from error
        return
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal", "give a file with -o, or pipe it somewhere")
    left_out = len(table) - _SHOWN_ROWS if form == "table" else 0
    _write(table.slice(0, _SHOWN_ROWS) if left_out > 0 else table, form, sys.stdout.buffer, decimals)
    sys.stdout.buffer.flush()
    if left_out > 0:
        click.echo(f"{left_out:,} more rows; --format csv gives all {len(table):,}", err=True)


def _write(table: pa.Table, form: str, file: BinaryIO, decimals: int) -> None:
    """Write a table in one format: whole columns at a time for people, batches of rows for programs."""
    match form:
        case "parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, file, compression="zstd")
        case "csv":
            import csv

            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(table.column_names)
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
            text.detach()
        case "json":
            # A list of records, one a line. JSON knows no nan and inf: they are the strings "nan" and "inf".
            before = b"[\n "
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                for row in batch.to_pylist():
                    record = {
                        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                        for name, value in row.items()
                    }
                    file.write(before + json_line(record).encode())
                    before = b",\n "
            file.write(b"\n]\n" if len(table) else b"[\n]\n")
        case "table":
            file.write(_as_text(table, decimals).encode())
        case _:
            from lowmem_layers.report.table_formats import as_latex, as_markdown

            header = [name.replace("_", " ") for name in table.column_names]
            # In a paper a missing number is a dash, whether it is null or NaN (which alone differs from itself).
            columns = [
                [
                    "–" if isinstance(value, float) and math.isnan(value) else _cell(value, decimals)
                    for value in column.to_pylist()
                ]
                for column in table.columns
            ]
            lay_out = as_markdown if form == "markdown" else as_latex
            file.write(lay_out(header, list(zip(*columns, strict=True))).encode())


def _as_text(table: pa.Table, decimals: int) -> str:
    """Lay a table out in columns: numbers to the right, names to the left."""
    import pyarrow.types as types

    cells = [[_cell(value, decimals) for value in column.to_pylist()] for column in table.columns]
    left = [types.is_string(column.type) or types.is_dictionary(column.type) for column in table.columns]
    widths = [max(map(len, [name, *column])) for name, column in zip(table.column_names, cells, strict=True)]
    lines = [table.column_names, *map(list, zip(*cells, strict=True))]
    return "".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _cell(value: Any, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else visible(str(value))
