"""The page as HTML, by `page.html.jinja`: the answer first, then what can be explored, then how it was made.

The page needs no network: scripts stand inside it and its security policy names their hashes; nothing else may run or
load. Without scripts it shows the answer, one figure and its table.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from lowmem_layers.findings.findings import Findings
from lowmem_layers.findings.rows import Rows, importance_rows, level_rows
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import minus
from lowmem_layers.report.page.answer import answer, leading_side
from lowmem_layers.report.page.comparisons import Compared, changed_words, run_titles
from lowmem_layers.report.page.data import Json, as_json, run_data
from lowmem_layers.report.page.library import library, script_hash
from lowmem_layers.report.page.protocol import citation, commands, facts, summary
from lowmem_layers.report.style import shown

_SCRIPTS = ("numbers.js", "tables.js", "charts.js", "several.js", "app.js")


@dataclass(frozen=True)
class Listing:
    """A table on the page, under a line that says what it shows."""

    words: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure that needs no script: its SVG, and what it shows in words."""

    svg: bytes
    words: str


@dataclass(frozen=True)
class Part:
    """What the page says of one run outside its scripts."""

    title: str
    summary: str
    warnings: Sequence[str]
    verdict: str
    answer: Sequence[str]
    lines: Sequence[str]
    levels: tuple[list[str], Rows]
    facts: Rows
    commands: Sequence[tuple[str, str]]
    citation: str


def page(
    runs: Sequence[tuple[Run, Findings]],
    picture: Picture | None,
    listings: Sequence[Listing],
    more_values: Sequence[str] = (),
    compared: Sequence[Compared] = (),
) -> str:
    """Write the page of one or more runs, which measures by the values of the findings, and by `more_values`.

    `picture` is what is seen without scripts, `listings` close the page, `compared` are the other runs against the
    first.
    """
    titles = run_titles([run for run, _ in runs])
    tables, data = [], []
    for (run, findings), title in zip(runs, titles, strict=True):
        if not findings.sides:
            continue
        side = leading_side(findings)
        of_run = f" of {title}" if len(runs) > 1 else ""
        words = f"Every sublayer{of_run} by {side.words} ({side.overall.task})"
        tables.append(Listing(words, *importance_rows(side.overall, side.scale, side.unit)))
        data.append({"title": title, **run_data(run, findings, side, more_values)})
    shown_data = {"runs": data, "compared": [each.to_json() for each in compared]} if data else None
    parts = [_part(run, findings, title) for (run, findings), title in zip(runs, titles, strict=True)]
    heading = f"Which sublayers of {titles[0]} matter?" if len(runs) == 1 else "Which sublayers matter?"
    return _render(heading, parts, shown_data, picture, tables, listings, compared)


def _render(
    title: str,
    parts: Sequence[Part],
    data: Json | None,
    picture: Picture | None,
    tables: Sequence[Listing],
    listings: Sequence[Listing],
    compared: Sequence[Compared],
) -> str:
    """Fill the template; `tables` are those that the scripts replace."""
    folder = resources.files("lowmem_layers.report.page")
    script = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalized
    )
    environment.filters |= {"base64": lambda content: base64.b64encode(content).decode(), "minus": minus}
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    drawing = library() if data is not None else None
    return template.render(
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        script_sources=f"{script_hash(script)} {drawing.hash}" if drawing is not None else "'none'",
        library=drawing,
        data=as_json(data) if data is not None else "",
        title=title,
        parts=parts,
        picture=picture,
        tables=tables,
        listings=listings,
        compared=[(changed_words(each), each) for each in compared],
    )


def _part(run: Run, findings: Findings, title: str) -> Part:
    done, manifest, verdict = run.n_items_done, run.manifest, findings.verdict
    unfinished = f"This run is unfinished: {done:,} of {manifest.n_items:,} items are in these numbers."
    cut = findings.cut and f"{findings.cut[0].upper()}{findings.cut[1:]}."
    return Part(
        title=title,
        summary=summary(manifest, run.tasks, done),
        warnings=[line for line in (unfinished if run.is_unfinished else "", cut) if line],
        verdict=f"{verdict[0].upper()}{verdict[1:]}." if verdict else "",
        answer=answer(run, findings) if findings.sides else (),
        lines=(*findings.cautions, *findings.perplexities, *findings.lines),
        levels=level_rows(findings.tasks),
        facts=facts(manifest),
        commands=commands(run),
        citation=citation(manifest),
    )


def _finalized(value: object) -> object:
    """Show control characters of names as what they are, not as what a browser makes of them."""
    return shown(value) if type(value) is str else value
