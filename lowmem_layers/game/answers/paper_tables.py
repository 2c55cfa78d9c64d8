"""Tables 1 to 4 of the study for any set of runs, by its own definitions, with the published numbers beside them.

Source: Zhang, Dong, Kawaguchi 2024, "Investigating Layer Importance in Large Language Models"; definitions in the form
of the authors' public code: values rounded to 4 decimals, negatives clipped to 0, shares of the sum, mean over tasks;
"top 3" is the model's fixed list of cornerstone sublayers, not each task's own three largest. Intervals are ours
(`paper_intervals.py`).
All fractions here are fractions (0.291), not percent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.importance import estimate
from lowmem_layers.game.answers.paper_intervals import table_intervals
from lowmem_layers.game.answers.shares import shares
from lowmem_layers.game.estimators.terms import neighbourhood_terms
from lowmem_layers.game.estimators.weights import estimator_weights, largest_window
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray, ValueTable

DECIMALS = 4  # of the values, before clipping
CODE_LARGEST = 3  # L in the authors' public code, by default
_OWN_TOP = "three largest mean shares"

_PACKINGS = r"(?:[-._ ](?:hf|v0\.1|gguf|gptq|awq|bnb|none|int[48]|[48]bit|b?f(?:loat|p)?(?:16|32)|i?q\d\w*))*"
# what a run's record calls a packing of the checkpoint's own, with whatever follows: `GPTQ 4-bit`, `torchao Int4`
_OWN = r"(?: (?:nf4|fp4|gguf|gptq|awq|bitsandbytes|hqq|torchao|compressed-tensors|modelopt|fp8|mxfp4|nvfp4)\b.*)?"
_PUBLISHED = re.compile(r"(?:.*/)?(?:meta-)?(llama-3-8b|llama-3-70b|mixtral-8x7b)" + _PACKINGS + _OWN)

PUBLISHED_CORNERSTONES: dict[str, tuple[str, ...]] = {
    "Llama-3-8B": ("attn.0", "ffn.0", "ffn.1"),
    "Llama-3-70B": ("attn.0", "ffn.0", "ffn.3"),
    "Mixtral-8x7B": ("attn.0", "moe.0", "moe.1"),
}
PUBLISHED_TOP_SHARE = {"Llama-3-8B": 0.291, "Llama-3-70B": 0.370, "Mixtral-8x7B": 0.375}
PUBLISHED_DROPS = {"Llama-3-8B": (0.293, 0.016), "Llama-3-70B": (0.367, 0.009), "Mixtral-8x7B": (0.235, 0.013)}
PUBLISHED_OTHER_DROPS: dict[str, dict[str, float]] = {
    "boolq": {"Llama-3-8B": 0.028, "Llama-3-70B": 0.011, "Mixtral-8x7B": 0.021},
    "piqa": {"Llama-3-8B": 0.015, "Llama-3-70B": 0.008, "Mixtral-8x7B": 0.010},
    "winogrande": {"Llama-3-8B": 0.004, "Llama-3-70B": 0.006, "Mixtral-8x7B": 0.014},
    "arc_easy": {"Llama-3-8B": 0.016, "Llama-3-70B": 0.011, "Mixtral-8x7B": 0.012},
    "arc_challenge": {"Llama-3-8B": 0.026, "Llama-3-70B": 0.016, "Mixtral-8x7B": 0.021},
    "openbookqa": {"Llama-3-8B": 0.009, "Llama-3-70B": 0.006, "Mixtral-8x7B": 0.004},
}


def published_model(label: str) -> str | None:
    """Recognise one of the study's three base models in a label, hub id or file name, else None.

    `meta-llama/Meta-Llama-3-8B`, `Meta-Llama-3-8B nf4`, `Meta-Llama-3-8B.Q4_K_M.gguf`: a model quantised is still that
    model. Other members of the families (`-Instruct`, Llama 3.1) are other models and are not recognised.
    """
    found = _PUBLISHED.fullmatch(label.lower())
    known = {name.lower(): name for name in PUBLISHED_CORNERSTONES}
    return None if found is None else known[found[1]]


@dataclass(frozen=True)
class Row1:
    """Table 1: the share of the cornerstone sublayers ("top 3") and of the others."""

    model: str
    top_share: float
    others_share: float
    published_top_share: float | None
    top_ci: Interval[float]


@dataclass(frozen=True)
class Row2:
    """Table 2: the cornerstone sublayers that all tables use (`source` says whose list), and this run's own top 3.

    `largest`: the three largest mean shares, in execution order; none where a share is unknown. `certain`: who is
    among the three largest estimates with certainty, all of them together at 95 %.
    """

    model: str
    cornerstones: tuple[str, ...]
    source: str
    largest: tuple[str, ...]
    published: tuple[str, ...] | None
    certain: tuple[str, ...]


@dataclass(frozen=True)
class Row3:
    """Table 3: the mean drop after removing one cornerstone, or one other sublayer."""

    model: str
    cornerstone_drop: float
    other_drop: float
    published: tuple[float, float] | None
    cornerstone_ci: Interval[float]
    other_ci: Interval[float]


@dataclass(frozen=True)
class Row4:
    """Table 4: the mean drop on one task after removing one of the other sublayers."""

    task: str
    model: str
    drop: float
    published: float | None
    ci: Interval[float]


@dataclass(frozen=True)
class PaperTables:
    """The four tables, a row a model (table 4: a row a task and model)."""

    table1: tuple[Row1, ...]
    table2: tuple[Row2, ...]
    table3: tuple[Row3, ...]
    table4: tuple[Row4, ...]


def paper_tables(
    runs: Mapping[str, Mapping[str, ValueTable]],
    *,
    cornerstones: Mapping[str, Sequence[str]] | None = None,
    max_removed: int | None = None,
    as_code: bool = False,
) -> PaperTables:
    """Compute tables 1–4 for models → tasks → tables of values.

    `as_code`: to the last digit of the authors' public code (`code_values`), which also has an L of 3 by default.

    Each model's list of cornerstones is the one given, else the published one of that model (`published_model`), else
    its own three largest mean shares. Where a task has no share (no positive value, or one that is not finite), there
    is no such list, and the numbers that need one are nan.

    Raises:
        UsageError: a model without tasks, tasks with different players, or a listed cornerstone that is no player.
    """
    given = {} if cornerstones is None else dict(cornerstones)
    rows1, rows2, rows3, rows4 = [], [], [], []
    for model, tasks in runs.items():
        kinds, known = {table.players for table in tasks.values()}, published_model(model) or ""
        if len(kinds) != 1:
            raise UsageError(
                f"{model} has {len(tasks)} tasks with {len(kinds)} sets of players", "give one model's tasks"
            )
        players = kinds.pop()
        share = paper_shares(list(tasks.values()), max_removed, as_code=as_code)
        largest = _largest(players, share)
        listed, source = _cornerstones(model, players, largest, given)
        # Masks over the players: the cornerstones, and the others (nobody where no list is known).
        top = np.array([name in listed for name in players])
        others = ~top if listed else top
        both = (float(share[top].sum()), float(share[others].sum())) if listed else (float("nan"), float("nan"))
        ci = table_intervals(list(tasks.values()), top, selected=source == _OWN_TOP, max_removed=max_removed)
        certain = estimate(list(tasks.values()), max_removed=max_removed).certain_top
        rows1.append(Row1(model, *both, PUBLISHED_TOP_SHARE.get(known), ci.top_share))
        rows2.append(Row2(model, listed, source, largest, PUBLISHED_CORNERSTONES.get(known), certain))
        drops = {task: clipped_drops(table, as_code=as_code) for task, table in tasks.items()}
        inside, outside = (_mean_of_means(list(drops.values()), kept) for kept in (top, others))
        rows3.append(Row3(model, inside, outside, PUBLISHED_DROPS.get(known), ci.cornerstone_drop, ci.other_drop))
        for (task, drop), each in zip(drops.items(), ci.by_task, strict=True):
            published = PUBLISHED_OTHER_DROPS.get(task, {}).get(known)
            rows4.append(Row4(task, model, _mean_of_means([drop], others), published, each))
    return PaperTables(tuple(rows1), tuple(rows2), tuple(rows3), tuple(rows4))


def paper_shares(tables: Sequence[ValueTable], max_removed: int | None = None, *, as_code: bool = False) -> FloatArray:
    """Average the tasks' shares of the rounded, clipped neighbourhood values. Shapes: (players,).

    A task without a positive value has no shares: everything is nan, as its average would be.
    """
    per_task = []
    for table in tables:
        if as_code:
            values = code_values(table, max_removed)
        else:
            weights = estimator_weights("neighbourhood", table.coalitions, table.players, max_removed)
            values = _apply(weights, table.values.mean(axis=0))
        per_task.append(shares(values, DECIMALS))
    return np.mean(per_task, axis=0)


def code_values(table: ValueTable, max_removed: int | None = CODE_LARGEST) -> FloatArray:
    """Estimate as the authors' public code does: accuracies without a sublayer rounded, then mean of differences.

    Differences come first, since a sum in another order may fall on the other side of a rounded decimal: of its ends'
    3 or 4 terms, every hundredth value lies halfway between two fourth decimals.
    Shapes: (players,); nan where a mean that is used is not finite.

    Raises:
        UsageError: a window was not measured.
    """
    largest = largest_window(table.coalitions, table.n_players) if max_removed is None else max_removed
    means = _code_means(table)
    means[~np.isfinite(means)] = np.nan
    found = []
    for player in range(table.n_players):
        terms = neighbourhood_terms(player, table.n_players, largest)
        found.append(np.mean([means[table.column_index(a)] - means[table.column_index(b)] for a, b, _ in terms]))
    return np.array(found)


def clipped_drops(table: ValueTable, *, as_code: bool = False) -> FloatArray:
    """Give every sublayer's ablation drop, negatives clipped to 0. Shapes: (players,)."""
    weights = estimator_weights("ablation", table.coalitions, table.players)
    return np.maximum(_apply(weights, _code_means(table) if as_code else table.values.mean(axis=0)), 0.0)


def _code_means(table: ValueTable) -> FloatArray:
    """Average over items; what is left without any sublayer is rounded (by numpy, ties to even), the full model not.

    Shapes: (coalitions,). Source: the authors' public code.
    """
    means, removed = table.values.mean(axis=0), np.array([bool(each) for each in table.coalitions])
    return np.where(removed, np.round(means, DECIMALS), means)


def _apply(weights: FloatArray, means: FloatArray) -> FloatArray:
    """Apply an estimator's weights to the means over items; nan where they touch a mean that is not finite."""
    finite = np.isfinite(means)
    result = weights @ np.where(finite, means, 0.0)
    result[(weights[:, ~finite] != 0).any(axis=1)] = np.nan
    return result


def _mean_of_means(drops: Sequence[FloatArray], kept: np.ndarray) -> float:
    """Average over layers, then over tasks; nan where no sublayer is kept."""
    return float(np.mean([drop[kept].mean() for drop in drops])) if kept.any() else float("nan")


def _largest(players: tuple[str, ...], share: FloatArray) -> tuple[str, ...]:
    """Name the three largest shares in execution order; nobody where a share is unknown."""
    if np.isnan(share).any():
        return ()
    # Rounded, so that of sublayers that are tied the first in execution order is taken.
    return tuple(players[p] for p in sorted(np.argsort(-np.round(share, 12), kind="stable")[:3].tolist()))


def _cornerstones(
    model: str, players: tuple[str, ...], largest: tuple[str, ...], given: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], str]:
    if model in given:
        listed, source = tuple(given[model]), "given"
    elif (known := published_model(model)) is not None:
        listed, source = PUBLISHED_CORNERSTONES[known], "published"
    else:
        listed, source = largest, _OWN_TOP if largest else "none: no share is known"
    unknown = [name for name in listed if name not in players]
    if unknown:
        raise UsageError(f"{unknown[0]} is no sublayer of {model}", f"its sublayers are {players[0]} to {players[-1]}")
    return listed, source
