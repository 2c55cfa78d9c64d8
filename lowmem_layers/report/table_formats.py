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
    """Write a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown, as GitHub reads it."""
    lines = [list(header), ["---" if left else "---:" for left in _names(header, rows)], *map(list, rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_latex(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as LaTeX, with the rules of booktabs."""
    body = [" & ".join(map(tex, row)) + r" \\" for row in rows]
    lines = [
        rf"\begin{{tabular}}{{{''.join('l' if left else 'r' for left in _names(header, rows))}}}",
        r"\toprule",
        " & ".join(map(tex, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _names(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell for each column whether it holds names, which stand to the left: the first, and those with only words."""
    words = [all(cell[:1].isalpha() for cell in column) for column in zip(*rows, strict=True)] or [False] * len(header)
    return [True, *words[1:]]


def tex(text: str) -> str:
    """Escape the signs that are commands in LaTeX."""
    return "".join(_TEX.get(sign, sign) for sign in text)
