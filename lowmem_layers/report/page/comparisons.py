"""What the page says of several runs side by side: each other run against the first, by `compare`'s rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import agreement_lines, compare_runs, differences
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.compare import Comparison
from lowmem_layers.report.page.data import Json, numbers
from lowmem_layers.report.style import shown
from lowmem_layers.tasks.metrics import metric_named


@dataclass(frozen=True, eq=False)
class Compared:
    """One run against the first: `found` by each value of the first run's findings, task by task.

    `found` is empty by a value by which the two cannot be compared; `refused` says why. Times `scales`, differences are
    in the units in which they are shown.
    """

    a: str
    b: str
    differences: list[str]
    lines: list[str]
    found: tuple[dict[str, Comparison], ...]
    scales: tuple[float, ...]
    refused: str = ""

    def to_json(self) -> Json:
        """Give the differences in the units in which they are shown, as the page's scripts take them."""
        return {
            "b": self.b,
            "refused": self.refused,
            "found": [
                {shown(task): _differences(one, scale) for task, one in found.items()}
                for found, scale in zip(self.found, self.scales, strict=True)
            ],
        }


def compare_all(runs: Sequence[Run]) -> list[Compared]:
    """Compare every other run with the first, by each value of the first run's findings."""
    titles = run_titles(runs)
    first = runs[0]
    compared = []
    for run, title in zip(runs[1:], titles[1:], strict=True):
        found: list[dict[str, Comparison]] = []
        refused = "nothing was removed" if not first.findings.sides else ""
        for place, side in enumerate(first.findings.sides):
            try:
                found.append(compare_runs(first, run, None if place == 0 else side.value))
            except UsageError as error:  # other players, other tasks, other metrics: the page says so
                found.append({})
                refused = error.message
        lines = agreement_lines(found[-1]) if found else []
        scales = tuple(side.scale for side in first.findings.sides)
        compared.append(Compared(titles[0], title, differences(first, run), lines, tuple(found), scales, refused))
    return compared


def run_titles(runs: Sequence[Run]) -> list[str]:
    """Name runs by their model, and by what was done to its sublayers where that differs; where that is not enough by
    packing (unpacked: dtype), then by tasks, then by folder.

    The same names are given again only to the same folder.
    """
    titles = [shown(run.manifest.model.id) for run in runs]
    if len({run.manifest.change for run in runs}) > 1:
        titles = [f"{title} · {run.manifest.change.words}" for title, run in zip(titles, runs, strict=True)]
    for more in (
        lambda run: run.manifest.model.dtype if run.manifest.packing == "none" else run.manifest.packing,
        lambda run: ", ".join(run.tasks),
        lambda run: str(run.folder),
    ):
        held = Counter(titles)
        titles = [
            f"{title} · {shown(more(run))}" if held[title] > 1 else title
            for title, run in zip(titles, runs, strict=True)
        ]
    return titles


def _differences(one: Comparison, scale: float) -> Json:
    ci = one.ci.times(scale)
    return {
        "players": [shown(name) for name in one.players],
        "a": numbers(scale * one.value_a),
        "b": numbers(scale * one.value_b),
        "value": numbers(scale * one.difference),
        "low": numbers(ci.low),
        "high": numbers(ci.high),
        "p": numbers(one.p_adjusted),
        "sure": [bool(each) for each in one.significant],
        "items": list(one.n_items),
        "paired": one.paired,
    }


def changed_words(compared: Compared) -> str:
    """Say in one sentence how many sublayers differ, by the last value that was compared."""
    if not any(compared.found):
        return f"{compared.a} and {compared.b} cannot be compared: {compared.refused}."
    found = [each for each in compared.found if each][-1]
    task, one = list(found.items())[-1]
    changed = [name for name, yes in zip(one.players, one.significant, strict=True) if yes]
    named = f": {', '.join(changed[:8])}{', …' if len(changed) > 8 else ''}" if changed else ""
    words = metric_named("loglikelihood").words
    return (
        f"{compared.a} against {compared.b}: {len(changed)} of {len(one.players)} sublayers differ significantly on "
        f"{task} by the {words if found is compared.found[-1] else 'metric of the task'}{named}."
    )
