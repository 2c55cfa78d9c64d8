"""The page: one file that opens anywhere, light or dark, on screen or paper, and asks nobody for anything."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from lowmem_layers.findings.findings import METRIC_WORDS, Findings, Side, coalition_means, cornerstone_lines
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.statement import verdict
from lowmem_layers.game.players.design import Design
from lowmem_layers.report.rows import importance_rows

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


_ESTIMATES = {
    "neighbourhood": "The neighbourhood estimate is the mean loss when one leaves windows at whose edge it stands.",
    "permutation": "The permutation estimate is the mean loss when one is removed on the way down a removal order.",
    "shapley": "The Shapley value is the mean loss over all sets that one can be removed from, all sizes alike.",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its SVG, what it shows in words, where its files are."""

    svg: bytes
    words: str
    stem: str
    formats: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """A table on the page, under a line that says what it shows."""

    words: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """Figures and tables that belong together."""

    title: str
    pictures: tuple[Picture, ...]
    listings: tuple[Listing, ...] = ()


def page(run: Run, findings: Findings | None, sections: Sequence[Section]) -> str:
    """Write the page."""
    model = str(run.manifest.model.get("id", "model"))
    title = f"Which sublayers of {model} matter?"
    style = resources.files("lowmem_layers.report").joinpath("page.css").read_text(encoding="utf-8")
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f"<p>{escape(_in_words(run))}</p>",
        *([f"<p class=warning>{escape(_unfinished(run))}</p>"] if run.is_unfinished else []),
        *([f"<p>{escape(said[0].upper() + said[1:])}.</p>"] if (said := verdict(run)) else []),
        "</header>",
        _tasks(run),
        *(_leaders(run, findings) if findings is not None else []),
        *(_section(section, open_=place < 2) for place, section in enumerate(sections)),
        *(_table(side) for side in (findings.sides if findings is not None else ())),
        _facts(run),
    ]
    return _FRAME.format(title=escape(title), style=style, body="\n".join(body))


def _in_words(run: Run) -> str:
    manifest = run.manifest
    n_coalitions = len(manifest.plan.coalitions) - 1
    removed = f"and without {_removed_in_words(manifest.game, n_coalitions)}" if n_coalitions else ""
    return (
        f"{manifest.model.get('id')} in {manifest.model.get('dtype')} (quantisation {manifest.resolved.get('quant')}) "
        f"answered {run.n_items_done:,} items of {', '.join(run.tasks)}, in full {removed}. "
        f"{_ESTIMATES[manifest.game.estimator]} The ablation drop is the loss when one alone is removed."
    )


def _removed_in_words(game: Design, n_coalitions: int) -> str:
    who = "sublayers" if game.grouping is None else f"of {len(game.players)} players (groups of sublayers)"
    if game.coalitions == "windows":
        largest = max(map(len, game.of_players))
        return f"each of {n_coalitions:,} windows of 1 to {largest} neighbouring {who}"
    if game.coalitions == "all":
        return f"each of all {n_coalitions:,} sets {who if game.grouping is not None else 'of sublayers'}"
    return (
        f"each of {n_coalitions:,} sets {who if game.grouping is not None else 'of sublayers'} on {len(game.orders)} "
        f"random removal orders, walked until chance was reached (after {min(game.cuts)} to {max(game.cuts)} removals)"
    )


def _unfinished(run: Run) -> str:
    return f"This run is unfinished: {run.n_items_done:,} of {run.manifest.n_items:,} items are in these numbers."


def _tasks(run: Run) -> str:
    rows = []
    for table in run.value_tables():
        metric, mean = run.metric(table.task), coalition_means(table, [()])
        scale, unit = (1.0, "") if metric == "nll_per_byte" else (100.0, " %")
        shown = f"{scale * mean.value[0]:.1f}{unit} [{scale * mean.ci.low[0]:.1f}, {scale * mean.ci.high[0]:.1f}]"
        chance = f"{scale * run.chance(table.task):.0f}{unit}" if unit else "–"
        rows.append([table.task, f"{table.n_items:,}", METRIC_WORDS[metric], shown, chance])
    return "<h2>The full model</h2>\n" + html_table(["task", "items", "metric", "value, 95 % interval", "chance"], rows)


def _leaders(run: Run, findings: Findings) -> list[str]:
    lines = [f"<li>{escape(line)}</li>" for line in cornerstone_lines(run, findings)]
    return ["<h2>What matters most</h2>", "<ul>", *lines, "</ul>"]


def _section(section: Section, *, open_: bool) -> str:
    parts = [*map(_figure, section.pictures), *map(_listing, section.listings)]
    state = " open" if open_ else ""
    inside = "\n".join(parts)
    return f"<details{state}><summary><h2>{escape(section.title)}</h2></summary>\n{inside}\n</details>"


def _listing(listing: Listing) -> str:
    return f"<p>{escape(listing.words)}</p>\n{html_table(listing.header, listing.rows)}"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg).decode()
    words = escape(picture.words)
    files = picture.stem + ", ".join(f".{form}" for form in picture.formats)
    return (
        f'<figure><img alt="{words}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{words} <small>{escape(files)}</small></figcaption></figure>"
    )


def _table(side: Side) -> str:
    header, rows = importance_rows(side.overall, side.scale, side.unit)
    title = f"Every sublayer by {side.words} ({side.overall.task})"
    return f"<details><summary><h2>{escape(title)}</h2></summary>\n{html_table(header, rows)}\n</details>"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table with a header row; the first column names the row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _facts(run: Run) -> str:
    manifest = run.manifest
    facts = {
        "status": manifest.status,
        "created": manifest.created,
        **{f"model: {name}": value for name, value in manifest.model.items()},
        **{f"option: {name}": value for name, value in manifest.resolved.items() if value is not None},
        **{f"data: {task['task']}": task["fingerprint"] for task in manifest.data},
        **{f"version: {name}": value for name, value in manifest.versions.items()},
    }
    rows = [[name, _fact(value)] for name, value in facts.items()]
    return f"<details><summary><h2>How this was made</h2></summary>\n{html_table(['', ''], rows)}\n</details>"


def _fact(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 200 else text[:200] + "…"
