"""What the page's scripts show: a run's numbers as JSON, in the units in which they are shown.

In go a run and its findings; out come plain dicts and lists. Arrays of players are in execution order, those of tasks
in the run's order with the mean over tasks (`all`) last; a number that is unknown is null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.findings import Findings, Means, Side, side
from lowmem_layers.findings.importance import ESTIMATORS, estimates
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.importance import Importance
from lowmem_layers.game.answers.interactions import Interactions
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.players.groups import Group
from lowmem_layers.game.players.player import Player
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.items import kinds_of
from lowmem_layers.report.axes import player_places
from lowmem_layers.report.style import shown
from lowmem_layers.tasks.metrics import VALUES, metric_named

Json = dict[str, Any]
KINDS = {"attn": "attention", "ffn": "feed-forward", "moe": "mixture of experts", "mixer": "mixer"}
_ESTIMATOR_WORDS = {
    "neighbourhood": "neighbourhood (windows)",
    "stratified": "stratified by window size",
    "ablation": "ablation drop (alone)",
    "shapley": "Shapley value",
    "permutation": "permutations",
}
_DIGITS = 5  # significant ones: more than any interval resolves


def run_data(run: Run, findings: Findings, shown_first: Side, more_values: Sequence[str] = ()) -> Json:
    """Gather what the page shows of one run, by the values of the findings and by more.

    `shown_first` is the side of the findings with which the page opens.
    """
    design, known = run.manifest.design, {each.value for each in findings.sides}
    sides = [*findings.sides, *(side(run, name) for name in more_values if name not in known)]
    names = [design.estimator]
    if design.coalitions == "permutations":
        names.append("ablation")  # random orders hold the windows of the others only by chance
    elif largest_window(sides[0].tables[0].coalitions, len(design.players)) > 1:
        names += [name for name in ESTIMATORS if name != design.estimator]
    found: list[list[list[Importance]]] = []  # [value][estimator][task]
    for each in sides:
        answers = [list(each.found)]
        for name in names[1:]:
            try:
                answers.append(estimates(each.tables, design, name))
            except UsageError:  # an estimator whose coalitions were not measured
                continue
        found.append(answers)
    chances = {each.task: each.chance for each in findings.tasks}
    windows = [] if design.coalitions == "permutations" else _windows(sides[0].tables[0].coalitions)
    pairs = sides[0].interactions[0] if sides[0].interactions else None
    return {
        "tasks": [shown(each.task) for each in sides[0].found],
        "players": players_data(design.players),
        "done": run.manifest.change.words,
        "values": [value_data(each, each is findings.sides[0]) for each in sides],
        "estimators": [{"id": each[0].estimator, "words": _ESTIMATOR_WORDS[each[0].estimator]} for each in found[0]],
        "start": sides.index(shown_first),
        "found": [
            [[importance_data(one, each.scale) for one in group] for group in answers]
            for each, answers in zip(sides, found, strict=True)
        ],
        "alone": [_alone(each, chances if each is findings.sides[0] else {}) for each in sides],
        "windows": {
            "first": [removed[0] for removed in windows],
            "size": [len(removed) for removed in windows],
            "lost": [[_losses(group, windows, each.scale) for group in _groups(each)] for each in sides],
        },
        "pairs": {
            "first": [] if pairs is None else pairs.first.tolist(),
            "second": [] if pairs is None else pairs.second.tolist(),
            "found": [[_pairs(one, each.scale) for one in each.interactions] for each in sides],
        },
    }


def allowed_values(run: Run) -> list[str]:
    """Name the values that all items of a run allow: some compare choices, and items of text have only one."""
    kinds = kinds_of(run.item_rows)
    return [name for name in VALUES if all(row.allows(metric_named(name)) for row in kinds)]


def importance_data(found: Importance, scale: float) -> Json:
    """Give one task's estimates, ranks and shares (in per cent)."""
    return {
        "items": found.n_items,
        **_with_ends(found.value, found.ci, scale),
        "rank": numbers(found.rank),
        "rank_low": numbers(found.rank_ci.low),
        "rank_high": numbers(found.rank_ci.high),
        "share": numbers(100 * found.share),
        "share_low": numbers(100 * np.asarray(found.share_ci.low)),
        "share_high": numbers(100 * np.asarray(found.share_ci.high)),
        "top": found.top_k_decision.tolist(),
    }


def value_data(of: Side, own: bool) -> Json:
    """Say what a value is called and in which unit it is shown."""
    digits = metric_named(of.value).decimals if of.value in VALUES else 1 if of.scale == 100.0 else 2
    level_unit = "%" if of.unit == "points" else of.unit
    words = f"{of.words} (the tasks' own)" if own and len(of.tables) > 1 else of.words
    return {"id": of.value, "words": words, "unit": of.unit, "level_unit": level_unit, "digits": digits}


def players_data(players: Sequence[Player | Group]) -> list[Json]:
    """Say who plays: name, kind, and place along x."""
    places = player_places(players, 0.2)
    return [
        {
            "name": shown(each.name),
            "words": player_words(each),
            "kind": "group" if isinstance(each, Group) else "attention" if each.is_attention else "feed-forward",
            "x": round(float(x), 3),
        }
        for each, x in zip(players, places, strict=True)
    ]


def player_words(player: Player | Group) -> str:
    """Say what a player is: `feed-forward of decoder layer 3`, `group of 4 sublayers`."""
    if isinstance(player, Group):
        return f"group of {len(player.members)} sublayers"
    return f"{KINDS[player.kind]} of decoder layer {player.layer}"


def numbers(values: ArrayLike) -> list[float | int | None]:
    """Round to what is shown; whole numbers stay whole, what is not finite becomes null."""
    rounded = [float(f"{value:.{_DIGITS}g}") for value in np.asarray(values, dtype=np.float64).tolist()]
    return [None if not np.isfinite(each) else int(each) if each == int(each) else each for each in rounded]


def as_json(data: Json) -> str:
    """Write JSON that can stand in a script element: no sign in it can end the element or a line of a script."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _alone(of: Side, chances: dict[str, float | None]) -> list[Json]:
    """Give each task's level with one player removed, the full model's, and chance's where there is one."""
    found = []
    for table, full, singles in zip(of.tables, of.full, of.singles, strict=True):
        chance = chances.get(table.task)
        found.append(
            {
                "full": {name: values[0] for name, values in _means(full, of.scale).items()},
                **_means(singles, of.scale),
                "chance": None if chance is None else of.scale * chance,
            }
        )
    return found


def _windows(coalitions: Sequence[Removed]) -> list[Removed]:
    """Pick out the windows of neighbours."""
    return [removed for removed in coalitions if removed and removed[-1] - removed[0] + 1 == len(removed)]


def _groups(of: Side) -> list[Sequence[ValueTable]]:
    """List the tables of each task, then of their mean."""
    return [*([table] for table in of.tables), *([of.tables] if len(of.tables) > 1 else [])]


def _losses(tables: Sequence[ValueTable], windows: Sequence[Removed], scale: float) -> Json:
    """Estimate what each window costs: v(N) − v(N∖S), paired over items, with intervals."""
    parts = []
    for table in tables:
        weights = np.zeros((len(windows), len(table.coalitions)))
        weights[:, table.column_index(())] = 1.0
        weights[np.arange(len(windows)), [table.column_index(removed) for removed in windows]] = -1.0
        parts.append(estimate_influence(table, weights))
    estimate = mean_over_tasks(parts)
    return _with_ends(estimate.value, mean_interval(estimate, 0.95), scale)


def _pairs(found: Interactions, scale: float) -> Json:
    return {
        **_with_ends(found.value, found.ci, scale),
        "p": numbers(found.p_adjusted),
        "sure": found.significant.tolist(),
    }


def _means(found: Means, scale: float) -> Json:
    return _with_ends(found.value, found.ci, scale)


def _with_ends(value: Any, ci: Any, scale: float) -> Json:
    return {"value": numbers(scale * value), "low": numbers(scale * ci.low), "high": numbers(scale * ci.high)}
