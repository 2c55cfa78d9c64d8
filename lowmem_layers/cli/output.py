"""Data goes to stdout or a file, as a table, CSV, JSON, parquet, or a table for a paper (Markdown, LaTeX)."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from lowmem_layers.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from lowmem_layers import Run

FORMATS = ("table", "csv", "json", "parquet", "markdown", "latex")
_SUFFIXES = {
    ".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table", ".md": "markdown", ".tex": "latex",
}  # fmt: skip
_SHOWN_ROWS = 200


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format and -o to a data command."""
    command = click.option("-o", "--output", metavar="FILE", help="Write to this file. [default: stdout]")(command)
    return click.option(
        "--format", "form", metavar="|".join(FORMATS), help="[default: by the file's ending, else table]"
    )(command)


def note_unfinished(*runs: Run) -> None:
    """Say on stderr which of these runs hold only a part of their items."""
    for run in runs:
        if run.is_unfinished:
            done, total = run.n_items_done, run.manifest.n_items
            click.echo(f"note: {run.folder} is unfinished: {done} of {total} items are in it", err=True)


def write_data(table: pa.Table, form: str | None, output: str | None, decimals: int = 4) -> None:
    """Write a table in the format asked for; `decimals` are those of tables for people.

    Raises:
        UsageError: unknown format, a file that cannot be written, or parquet to a terminal.
    """
    form = chosen_format(form, output)
    if output is None:
        _to_stdout(table, form, decimals)
        return
    try:
        with Path(output).open("wb") as file:
            _write(table, form, file, decimals)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}", "choose another file with -o") from error


def chosen_format(form: str | None, output: str | None) -> str:
    """Take the format asked for, else the one of the file's ending.

    Raises:
        UsageError: unknown format.
    """
    from lowmem_layers.record.spec import one_of

    one_of("--format", form, FORMATS)
    return form or _SUFFIXES.get(Path(output or "").suffix.lower(), "table")


def _to_stdout(table: pa.Table, form: str, decimals: int) -> None:
    if form == "parquet" and sys.stdout.isatty():
        raise UsageError("parquet is not for a terminal", "give a file with -o, or pipe it somewhere")
    _write(table, form, sys.stdout.buffer, decimals)
    sys.stdout.buffer.flush()
    if form == "table" and len(table) > _SHOWN_ROWS:
        click.echo(f"{len(table) - _SHOWN_ROWS:,} more rows; --format csv gives all {len(table):,}", err=True)


def _write(table: pa.Table, form: str, file: BinaryIO, decimals: int) -> None:
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, file, compression="zstd")
    elif form == "csv":
        _write_csv(table, file)
    elif form == "json":
        _write_json(table, file)
    elif form == "table":
        shown = table.slice(0, _SHOWN_ROWS) if file is sys.stdout.buffer else table
        file.write(as_text(shown, decimals).encode())
    else:
        file.write(_for_paper(table, form, decimals).encode())


def _for_paper(table: pa.Table, form: str, decimals: int) -> str:
    from lowmem_layers.report.table_formats import as_latex, as_markdown

    header = [name.replace("_", " ") for name in table.column_names]
    rows = zip(*([_dashed(value, decimals) for value in column.to_pylist()] for column in table.columns), strict=True)
    return (as_markdown if form == "markdown" else as_latex)(header, list(rows))


def _dashed(value: Any, decimals: int) -> str:
    """Write a cell for readers of a paper: what is no number is missing."""
    return "–" if isinstance(value, float) and math.isnan(value) else _cell(value, decimals)


def _write_csv(table: pa.Table, file: BinaryIO) -> None:
    import csv

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=50_000):
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    text.detach()


def _write_json(table: pa.Table, file: BinaryIO) -> None:
    """Write a list of records, one a line; JSON knows no nan and inf, so they are the strings "nan" and "inf"."""
    file.write(b"[")
    first = True
    for batch in table.to_batches(max_chunksize=50_000):
        for row in batch.to_pylist():
            record = {name: plain(value) for name, value in row.items()}
            file.write((b"\n " if first else b",\n ") + json.dumps(record, ensure_ascii=False).encode())
            first = False
    file.write(b"\n]\n")


def plain(value: Any) -> Any:
    """Spell a number that JSON does not know."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_text(table: pa.Table, decimals: int = 4) -> str:
    """Lay a table out in columns: numbers to the right, names to the left."""
    cells = [[_cell(value, decimals) for value in column.to_pylist()] for column in table.columns]
    numeric = [not _is_name(column.type) for column in table.columns]
    widths = [max(map(len, [name, *column])) for name, column in zip(table.column_names, cells, strict=True)]
    lines = [table.column_names, *map(list, zip(*cells, strict=True))]
    return "".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _is_name(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_dictionary(kind)


def _cell(value: Any, decimals: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
