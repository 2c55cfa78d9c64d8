"""Tables for people and papers: CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

_TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "±": r"$\pm$",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--",
        "<": r"\textless{}", ">": r"\textgreater{}", "−": "$-$", "…": r"\dots{}", "×": r"$\times$"}  # fmt: skip


def write_tables(folder: Path, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table as NAME.csv, NAME.md and NAME.tex."""
    for suffix, text in (
        ("csv", as_csv(header, rows)),
        ("md", as_markdown(header, rows)),
        ("tex", as_latex(header, rows)),
    ):
        (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8", newline="\n")


def as_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Separate by commas."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out as GitHub reads it."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out with booktabs."""
    body = [" & ".join(map(tex, row)) + r" \\" for row in rows]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(map(tex, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def tex(text: str) -> str:
    """Escape what LaTeX would take for commands."""
    return "".join(_TEX.get(sign, sign) for sign in text)
