"""The page: one file that opens anywhere, light or dark, on screen or paper, and loads nothing from elsewhere.

In go a run's manifest, its findings, and sections of figures and tables; out comes HTML, by `page.html.jinja`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from lowmem_layers.findings.findings import Findings
from lowmem_layers.findings.rows import importance_rows, level_rows, minus
from lowmem_layers.findings.run import Run
from lowmem_layers.record.manifest import Manifest

_LONGEST_FACT = 200  # signs; a list of options may be longer than a reader's patience
_ESTIMATES = {
    "neighbourhood": "The neighbourhood estimate of a {player} is the mean loss when it is removed: from the full "
    "model, and from models that already lack a window of {player}s next to it.",
    "permutation": "The permutation estimate of a {player} is the mean loss when its turn comes to be removed, over "
    "random orders of removal.",
    "shapley": "The Shapley value of a {player} is the mean loss when it is removed, over all sets of other {player}s; "
    "each size of set has the same weight.",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page: its SVG, what it shows in words, and the names of its files."""

    svg: bytes
    words: str
    files: str


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


def page(run: Run, findings: Findings, sections: Sequence[Section]) -> str:
    """Write the page."""
    folder = resources.files("lowmem_layers.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"base64": lambda data: base64.b64encode(data).decode(), "minus": minus}
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    done, manifest, verdict = run.n_items_done, run.manifest, findings.verdict
    unfinished = f"This run is unfinished: {done:,} of {manifest.n_items:,} items are in these numbers."
    cut = findings.cut and f"{findings.cut[0].upper()}{findings.cut[1:]}."
    listings = [
        Listing(
            f"Every sublayer by {side.words} ({side.overall.task})",
            *importance_rows(side.overall, side.scale, side.unit),
        )
        for side in findings.sides
    ]
    return template.render(
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        title=f"Which sublayers of {manifest.model.id} matter?",
        summary=_summary(manifest, run.tasks, done),
        warnings=[line for line in (unfinished if run.is_unfinished else "", cut) if line],
        verdict=f"{verdict[0].upper()}{verdict[1:]}." if verdict else "",
        levels=level_rows(findings.tasks),
        lines=findings.lines,
        perplexities=findings.perplexities,
        sections=sections,
        listings=[*listings, _facts(manifest)],
    )


def _summary(manifest: Manifest, tasks: Sequence[str], n_items: int) -> str:
    """Say in words what was measured, and what the two estimates mean."""
    design, n_coalitions = manifest.design, len(manifest.plan.coalitions) - 1
    player = "group" if any(each.is_group for each in design.players) else "sublayer"
    # 1) what was removed
    largest = max(map(len, design.of_players))
    who = f"of {len(design.players)} {player}s " if design.grouping is not None else ""
    if n_coalitions == 0:
        removed = ""
    elif design.coalitions == "all":
        removed = f", and with each of the {n_coalitions:,} sets {who or f'of {player}s '}removed"
    elif design.coalitions == "permutations":
        removed = (
            f", and with each of {n_coalitions:,} sets {who or f'of {player}s '}removed, along {len(design.orders)} "
            f"random orders, each down to chance level (after {min(design.cuts)} to {max(design.cuts)} removals)"
        )
    elif largest == 1:
        removed = f", and with each of {n_coalitions:,} {player}s removed"
    else:
        removed = f", and with each of {n_coalitions:,} windows of 1 to {largest} neighbouring {player}s {who}removed"
    # 2) what the numbers mean; without windows of two there is one number, not two
    meaning = _ESTIMATES[design.estimator].format(player=player)
    if design.coalitions == "windows" and largest == 1:
        meaning = f"The estimate of a {player} is its ablation drop."
    meaning += f" The ablation drop of a {player} is the loss when it alone is removed."
    return (
        f"{manifest.model.id} in {manifest.model.dtype} (quantisation {manifest.resolved.quant}) "
        f"was scored on {n_items:,} items of {', '.join(tasks)}: complete{removed}."
        f"{' ' + meaning if removed else ''}"
    )


def _facts(manifest: Manifest) -> Listing:
    """List everything that is needed to make the run again."""
    facts = {
        "status": manifest.status,
        "created": manifest.created,
        **{f"model: {name}": value for name, value in manifest.model.to_json().items()},
        **{f"option: {name}": value for name, value in manifest.resolved.to_json().items() if value is not None},
        **{f"data: {task.task}": task.fingerprint for task in manifest.data},
        **{f"version: {name}": value for name, value in manifest.versions.items()},
    }
    rows = []
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        rows.append([name, text if len(text) <= _LONGEST_FACT else text[:_LONGEST_FACT] + "…"])
    return Listing("How this was made", ["", ""], rows)
