"""The metrics: from log-likelihoods of choices to one value for each item and coalition, and how values are shown.

Everything that the package knows of a metric stands in its row of `METRICS`. Larger is always better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowmem_layers.errors import UsageError, did_you_mean

Value = Literal[
    "acc", "acc_norm", "loglikelihood", "margin", "probability", "kl", "nll_per_byte", "loglikelihood_per_char",
    "greedy",
]  # fmt: skip
VALUES: tuple[Value, ...] = get_args(Value)
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a metric is computed from.

    Shapes: `scores` (items, coalitions, choices), nats; `gold` (items,); `chars`, `n_bytes` and `exists` (items,
    choices), where `exists` is False beyond an item's own choices. `full` is the full model's place among coalitions.
    """

    scores: Floats
    gold: NDArray[np.intp]
    chars: NDArray
    n_bytes: NDArray
    exists: NDArray[np.bool_]
    full: int = 0

    def of_gold(self, table: NDArray) -> NDArray:
        """Take the gold choice's entries. Shapes: (items, coalitions or 1, choices) -> (items, coalitions or 1)."""
        return np.take_along_axis(table, self.gold[:, None, None], axis=2)[:, :, 0]


@dataclass(frozen=True)
class Metric:
    """One metric.

    `words` name the metric in a sentence, `short` in the head of a narrow column. Times `scale`, a value is shown in
    `unit` with `decimals`. `usual_effect` is the size of a difference that one usually wants to resolve. `has_chance`
    tells whether guessing has a known value; `needs_choices` whether an item must have two choices at least,
    `needs_likeliest` whether beside its only choice stands what the likeliest tokens would have had.
    """

    name: Value
    words: str
    short: str
    unit: str
    scale: float
    decimals: int
    usual_effect: float
    has_chance: bool
    needs_choices: bool
    compute: Callable[[Scored], Floats]
    needs_likeliest: bool = False

    @property
    def in_unit_interval(self) -> bool:
        """Tell whether values lie between 0 and 1: those that are shown in points."""
        return self.unit == "points"

    @property
    def level_unit(self) -> str:
        """Name the unit of a value itself, where `unit` is that of a difference: 84.5 %, but 3.1 points more."""
        return "%" if self.unit == "points" else self.unit


def metric_named(name: str) -> Metric:
    """Look a metric up.

    Raises:
        UsageError: there is no such metric; the nearest name is given.
    """
    if name in METRICS:
        return METRICS[name]
    raise UsageError(f"there is no value {name!r}", f"{did_you_mean(name, VALUES)}values: {', '.join(VALUES)}")


def check_allowed(metric: Metric, has_choices: bool, has_likeliest: bool, task: str = "") -> None:
    """See that items have what a metric compares: several choices, or what the likeliest tokens would have had.

    Raises:
        UsageError: they lack it.
    """
    if metric.needs_choices and not has_choices:
        raise UsageError(
            f"{metric.name} compares choices, and some items{task and f' of {task}'} have only one",
            "use loglikelihood or nll_per_byte for text, greedy for continuations",
        )
    if metric.needs_likeliest and not has_likeliest:
        raise UsageError(
            f"{metric.name} asks whether a single continuation is the likeliest, which is not measured here",
            "tasks of lm-evaluation-harness with continuations and `acc` measure it; with choices, use acc",
        )


def item_values(
    loglikelihoods: ArrayLike,
    gold: ArrayLike,
    choice_chars: ArrayLike,
    choice_bytes: ArrayLike,
    value: str,
    full: int = 0,
) -> Floats:
    """Turn log-likelihoods into the values of a metric.

    Log-likelihoods that are not finite have a defined result; no item is left out. A choice whose log-likelihood is
    NaN is never chosen, and an item whose gold choice has NaN is wrong. Minus infinity is the smallest number.
    `loglikelihood` and `nll_per_byte` pass on what the gold choice has. `full` is the full model's coalition, with
    which `kl` compares: NaN where a choice of either is NaN, minus infinity where one that the full model holds
    possible has become impossible. `margin` and `probability` are NaN where any choice of the item is NaN, and where
    all choices are minus infinity.

    Shapes: `loglikelihoods` (items, coalitions, choices), NaN beyond an item's own choices; `gold` (items,);
        `choice_chars` and `choice_bytes` (items, choices), 0 beyond an item's own choices. Result (items, coalitions).

    Raises:
        UsageError: an unknown metric, or one that compares choices for items that have a single one.
    """
    metric = metric_named(value)
    scores = np.asarray(loglikelihoods, dtype=np.float64)  # (items, coalitions, choices)
    answer = np.asarray(gold, dtype=np.intp)  # (items,)
    chars, n_bytes = np.asarray(choice_chars), np.asarray(choice_bytes)  # (items, choices)
    exists = chars > 0  # (items, choices)
    if scores.ndim != 3 or exists.shape != (scores.shape[0], scores.shape[2]) or n_bytes.shape != exists.shape:
        raise ValueError(f"loglikelihoods {scores.shape} do not fit lengths {exists.shape}, {n_bytes.shape}")
    named = answer.shape == scores.shape[:1] and bool(((answer >= 0) & (answer < exists.shape[1])).all())
    if not named or not exists[np.arange(len(answer)), answer].all():
        raise ValueError(f"gold {answer.shape} must name one existing choice of each of {scores.shape[0]} items")
    n_own = exists.sum(axis=1)  # (items,)
    check_allowed(metric, bool((n_own > 1).all()), exists.shape[1] == 2 and bool((n_own == 1).all()))
    return metric.compute(Scored(scores, answer, chars, n_bytes, exists, full))


def accuracy(given: Scored, scores: Floats) -> Floats:
    """Give 1 where the gold choice has the largest score, else 0; the first index wins ties."""
    usable = given.exists[:, None, :] & ~np.isnan(scores)  # (items, coalitions, choices)
    best = np.where(usable, scores, -np.inf).max(axis=2, keepdims=True)  # (items, coalitions, 1)
    winners = usable & (scores == best)
    first = winners.argmax(axis=2)  # argmax of booleans: the first True
    return ((first == given.gold[:, None]) & winners.any(axis=2)).astype(np.float64)


def margin(given: Scored) -> Floats:
    """Subtract the best other choice's log-likelihood from that of the gold choice."""
    others = given.exists & (np.arange(given.exists.shape[1]) != given.gold[:, None])
    best_other = np.where(others[:, None, :], given.scores, -np.inf).max(axis=2)  # max passes NaN on
    with np.errstate(invalid="ignore"):  # −inf − −inf is NaN: the margin is not defined
        return given.of_gold(given.scores) - best_other


def probability(given: Scored) -> Floats:
    """Give the gold choice's share in a softmax over the item's choices."""
    padded = np.where(given.exists[:, None, :], given.scores, -np.inf)
    with np.errstate(invalid="ignore"):  # where all choices are −inf: NaN
        weights = np.exp(padded - padded.max(axis=2, keepdims=True))
        return given.of_gold(weights) / weights.sum(axis=2)


def divergence(given: Scored) -> Floats:
    """Give minus the Kullback–Leibler divergence from the full model, over the item's choices.

    Both models' probabilities are those of `probability`, a softmax of the choices' log-likelihoods: Σ p (log p −
    log q), where p is the full model's. (Over the whole vocabulary it would need numbers that no record holds.)
    """
    padded = np.where(given.exists[:, None, :], given.scores, -np.inf)  # (items, coalitions, choices)
    with np.errstate(invalid="ignore"):
        shifted = padded - padded.max(axis=2, keepdims=True)
        q = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
        p = q[:, [given.full]]  # (items, 1, choices)
        parts = np.where(np.exp(p) > 0, np.exp(p) * (p - q), np.where(np.isnan(p + q), np.nan, 0.0))
        return -np.where(given.exists[:, None, :], parts, 0.0).sum(axis=2)


_ROWS = (
    Metric(
        name="acc",
        words="accuracy",
        short="accuracy",
        unit="points",
        scale=100.0,
        decimals=1,
        usual_effect=0.01,
        has_chance=True,
        needs_choices=True,
        compute=lambda given: accuracy(given, given.scores),
    ),
    Metric(
        name="acc_norm",
        words="accuracy (length-normalised)",
        short="accuracy",
        unit="points",
        scale=100.0,
        decimals=1,
        usual_effect=0.01,
        has_chance=True,
        needs_choices=True,
        # each choice's log-likelihood is divided by its characters, as lm-evaluation-harness does for its acc_norm
        compute=lambda given: accuracy(given, given.scores / np.where(given.exists, given.chars, 1)[:, None, :]),
    ),
    Metric(
        name="loglikelihood",
        words="gold answer's log-likelihood",
        short="log-lik.",
        unit="nats",
        scale=1.0,
        decimals=2,
        usual_effect=0.05,
        has_chance=False,
        needs_choices=False,
        compute=lambda given: given.of_gold(given.scores),
    ),
    Metric(
        name="margin",
        words="margin over the best other choice",
        short="margin",
        unit="nats",
        scale=1.0,
        decimals=2,
        usual_effect=0.05,
        has_chance=False,
        needs_choices=True,
        compute=margin,
    ),
    Metric(
        name="probability",
        words="probability of the gold answer",
        short="probability",
        unit="points",
        scale=100.0,
        decimals=1,
        usual_effect=0.01,
        has_chance=False,
        needs_choices=True,
        compute=probability,
    ),
    Metric(
        name="kl",
        words="KL divergence from the full model over the choices (negative)",
        short="KL",
        unit="nats",
        scale=1.0,
        decimals=3,
        usual_effect=0.01,
        has_chance=False,
        needs_choices=True,
        compute=divergence,
    ),
    Metric(
        name="nll_per_byte",
        words="log-likelihood per byte",
        short="per byte",
        unit="nats per byte",
        scale=1.0,
        decimals=3,
        usual_effect=0.01,
        has_chance=False,
        needs_choices=False,
        # minus the loss in nats per byte, so that larger is better
        compute=lambda given: given.of_gold(given.scores) / given.of_gold(given.n_bytes[:, None, :]),
    ),
    Metric(
        name="loglikelihood_per_char",
        words="gold answer's log-likelihood per character",
        short="per char.",
        unit="nats per character",
        scale=1.0,
        decimals=3,
        usual_effect=0.01,
        has_chance=False,
        needs_choices=False,
        # what acc_norm compares, of the gold choice: long answers count no more than short ones
        compute=lambda given: given.of_gold(given.scores) / given.of_gold(given.chars[:, None, :]),
    ),
    Metric(
        name="greedy",
        words="share of continuations that the model would have written",
        short="greedy",
        unit="points",
        scale=100.0,
        decimals=1,
        usual_effect=0.01,
        has_chance=False,
        needs_choices=False,
        # lm-evaluation-harness' acc of its loglikelihood tasks: nowhere is another token likelier (NaN compares false)
        compute=lambda given: (given.scores[:, :, 0] >= given.scores[:, :, 1]).astype(np.float64),
        needs_likeliest=True,
    ),
)
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
