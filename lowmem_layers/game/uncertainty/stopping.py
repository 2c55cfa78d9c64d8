"""Stopping early: a statement about the importance, and whether the items so far prove it at any time of looking.

Evidence against "the difference is 0" is an e-process. Its probability of *ever* exceeding 1/α is at most α when there
is no difference, so a run may look after every tile, or every item, and stop at any of them. A statement needs several
comparisons to hold at once; their number divides α (Bonferroni over every comparison that could be wrongly decided).

Values within 0 and 1 (accuracy, probability): bets (`betting.py`), valid whatever the distribution. Log-likelihoods:
a t-test e-process, the likelihood ratio of a Gaussian spread of effect sizes against none, scale-free. Skewed items
would break its Gaussian bound: where the skewness makes a difference look surer than it is, the t statistic is first
corrected for it (`skewness.cautious_t`), never the other way. No rule can know of rare large losses that no item has
shown yet, so such a statement says what it assumes, and how much of the estimate the largest 1 % of the items carry.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.uncertainty.betting import Stream, stream_of
from lowmem_layers.game.uncertainty.errors import (
    Influence,
    contributions,
    estimate_influence,
    mean_over_tasks,
    skewness_of,
)
from lowmem_layers.game.uncertainty.skewness import cautious_t, incautious_t
from lowmem_layers.game.values.table import FloatArray, ValueTable, as_tables

EFFECT_VARIANCE = 0.1  # of the mixture: tightest for effects of about 0.3 standard deviations an item
MIN_CLUSTERS = 30  # fewer say too little about their own spread for any certainty

_TOP = re.compile(r"top=?([1-9]\d*)")
_WIDTH = re.compile(r"ci=(\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class Statement:
    """What is to be proved: the `top` K sublayers as a set, the whole `rank` order, or all half-widths (`ci`)."""

    kind: Literal["top", "rank", "ci"]
    top_k: int = 0
    half_width: float = 0.0


@dataclass(frozen=True)
class StopDecision:
    """Whether the statement holds now; `text` states it with its numbers, `detail` names what decides it."""

    holds: bool
    text: str
    detail: str
    n_items: int


def parse_statement(text: str) -> Statement:
    """Read `top3`, `top=K`, `rank` or `ci=0.01`.

    Raises:
        UsageError: anything else.
    """
    top, width = _TOP.fullmatch(text), _WIDTH.fullmatch(text)
    if top is not None:
        return Statement("top", top_k=int(top[1]))
    if width is not None and float(width[1]) > 0:
        return Statement("ci", half_width=float(width[1]))
    if text == "rank":
        return Statement("rank")
    raise UsageError(f"{text!r} is no statement to stop at", "use top3, top=K, rank or ci=0.01")


def item_order(clusters: Sequence[Hashable], seed: int) -> list[int]:
    """Shuffle the items cluster by cluster: the order in which a run that may stop early takes them.

    Every order of the clusters is equally likely, whatever their sizes; items of one cluster stay side by side. If the
    items were shuffled one by one and a cluster stood where its first item fell, large clusters would come first, and
    an early stop would speak about them alone.

    Shapes: `clusters` names the cluster of each item; the result lists the items' places in their new order.
    """
    members: dict[Hashable, list[int]] = {}
    for place, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(place)
    groups = list(members.values())
    return [place for group in np.random.default_rng(seed).permutation(len(groups)) for place in groups[group]]


def decide(
    tables: ValueTable | Sequence[ValueTable],
    statement: Statement | str,
    *,
    level: float = 0.95,
    estimator: Estimator = "neighbourhood",
    max_removed: int | None = None,
    n_total: int | None = None,
) -> StopDecision:
    """Decide whether the items so far prove the statement (about the mean over tasks, where several are given).

    `n_total` is how many items there are, for the text.
    The clusters must come in an order that has nothing to do with their content or size (`item_order`).
    The guarantee: over all looks together, a wrong statement is made with probability at most 1 − `level`; for
    accuracies and probabilities whatever their distribution, for log-likelihoods exact where contributions are
    Gaussian and measured for others in benchmarks/stopping.py.

    Raises:
        UsageError: no such statement, or more sublayers on top than there are.
    """
    parsed = parse_statement(statement) if isinstance(statement, str) else statement
    listed = as_tables(tables)
    weights = [estimator_weights(estimator, t.coalitions, t.players, max_removed) for t in listed]
    estimate = mean_over_tasks([estimate_influence(t, each) for t, each in zip(listed, weights, strict=True)])
    players, n_items = listed[0].players, sum(t.n_items for t in listed)
    if parsed.kind == "top" and parsed.top_k >= len(players):
        raise UsageError(f"a top {parsed.top_k} of {len(players)} sublayers", "ask for fewer than there are")
    if not np.isfinite(estimate.value).all():
        bad = players[int(np.flatnonzero(~np.isfinite(estimate.value))[0])]
        return StopDecision(False, "nothing is certain", f"the value of {bad} is not finite", n_items)
    if min(t.n_clusters for t in listed) < MIN_CLUSTERS:
        return StopDecision(False, "nothing is certain yet", f"fewer than {MIN_CLUSTERS} items a task", n_items)
    stream = stream_of(listed, weights) if all(t.is_bounded for t in listed) else None
    if parsed.kind == "ci":
        claim, about = f"all values together are known to ±{parsed.half_width:g}", range(len(players))
        holds, detail = _decide_width(estimate, stream, players, parsed.half_width, level)
    else:
        holds, claim, detail, about = _decide_order(estimate, stream, players, parsed, level)
    if not holds:
        return StopDecision(False, "not certain yet", detail, n_items)
    items = f"{n_items:,} items" if n_total is None else f"{n_items:,} of {n_total:,} items"
    assumed = "" if stream is not None else f"; {_assumption(listed, weights, players, about)}"
    return StopDecision(True, f"{claim} ({100 * level:g} % at any time of looking, {items}{assumed})", detail, n_items)


def _decide_width(
    estimate: Influence, stream: Stream | None, players: tuple[str, ...], half_width: float, level: float
) -> tuple[bool, str]:
    """Decide whether all values together are known to a half-width, and name the least known one."""
    alpha = (1.0 - level) / len(players)
    if stream is None:
        radius = anytime_radius(estimate, alpha)
        widest = int(np.argmax(radius))
        return bool(radius[widest] <= half_width), f"±{radius[widest]:.3g} at {players[widest]}"
    needed = float(np.log(2.0 / alpha))  # each of the two sides may be wrong with probability α/2
    evidence = stream.evidence_within(estimate.value - half_width, estimate.value + half_width)
    widest = int(np.argmin(evidence))
    known = stream.radius(widest, float(estimate.value[widest]), needed)
    return bool(evidence[widest] > needed), f"±{known:.3g} at {players[widest]}"


def _assumption(
    tables: Sequence[ValueTable], weights: Sequence[FloatArray], players: tuple[str, ...], about: Sequence[int]
) -> str:
    """Say what a statement about unbounded values takes for granted, with the share that its largest items carry."""
    shares = np.max([largest_items_share(contributions(t, w)) for t, w in zip(tables, weights, strict=True)], axis=0)
    most = max(about, key=lambda player: shares[player])
    carried = f"the largest 1 % of the items carry {100 * shares[most]:.0f} % of {players[most]}'s size"
    return f"if no rare items lose far more than these: {carried}"


def largest_items_share(per_item: FloatArray) -> FloatArray:
    """Give the share of Σ|contribution| that the largest 1 % of the items carry, one item at least.

    Shapes: (items, players) → (players,); 0 where nothing contributes.
    """
    size = np.sort(np.abs(per_item), axis=0)  # (items, players)
    total = size.sum(axis=0)
    largest = size[-max(1, round(0.01 * len(size))) :].sum(axis=0)
    return np.divide(largest, total, out=np.zeros(total.shape), where=total > 0)


def log_evidence(t_statistic: FloatArray, dof: FloatArray) -> FloatArray:
    """Give the log of the e-process against a zero mean, from the t statistic after dof + 1 items.

    (1 + ng)^(−1/2) · [(1 + t²/ν) / (1 + t²/(ν(1 + ng)))]^((ν+1)/2) with n = ν + 1 and g the mixture's variance.
    Shapes: any.
    Source: Gönen et al. 2005 (the ratio); Lai 1976, Wang and Ramdas 2024 (its anytime validity).
    """
    spread = 1.0 + (dof + 1.0) * EFFECT_VARIANCE
    squared = t_statistic**2 / dof
    return -0.5 * np.log(spread) + 0.5 * (dof + 1.0) * (np.log1p(squared) - np.log1p(squared / spread))


def anytime_radius(estimate: Influence, alpha: float) -> FloatArray:
    """Invert the e-process: the half-width within which the truth stays at all times with probability 1 − α.

    Shapes: (players,); infinite while the items are too few.
    """
    dof = estimate.dof
    spread = 1.0 + (dof + 1.0) * EFFECT_VARIANCE
    factor = np.exp((2.0 * np.log(1.0 / alpha) + np.log(spread)) / (dof + 1.0))
    room = 1.0 - factor / spread
    squared = np.divide(factor - 1.0, room, out=np.full(dof.shape, np.inf), where=room > 0)
    plain = np.sqrt(np.where(np.isfinite(squared), squared, 0.0) * dof)
    needed = np.where(np.isfinite(squared), incautious_t(plain, -np.abs(estimate.skewness)), np.inf)
    return np.where(estimate.standard_error > 0, needed * estimate.standard_error, np.inf)


def _decide_order(
    estimate: Influence, stream: Stream | None, players: tuple[str, ...], statement: Statement, level: float
) -> tuple[bool, str, str, Sequence[int]]:
    """Decide about the top K or the whole order: whether it holds, what then holds, the weakest comparison, about whom.

    The top K holds where each of its members is above each other player; the order where each is above the next.
    """
    order = [int(p) for p in np.argsort(-estimate.value, kind="stable")]
    if statement.kind == "top":
        top, rest = order[: statement.top_k], order[statement.top_k :]
        compared = [(player, rest) for player in top]
        n_questions = len(top) * len(rest)
        claim = f"the top {len(top)} {'is' if len(top) == 1 else 'are'} {', '.join(players[p] for p in top)}"
    else:
        compared = [(above, [below]) for above, below in pairwise(order)]
        n_questions = len(order) * (len(order) - 1) // 2  # any two might have come out as neighbours
        claim = f"the order is {', '.join(players[p] for p in order)}"
    if not compared:
        return True, claim, f"{players[0]} is the only player", order
    evidence = np.concatenate(
        [
            _log_evidence_above(estimate, above, below) if stream is None else stream.evidence_above(above, below)
            for above, below in compared
        ]
    )
    needed = float(np.log(n_questions / (1.0 - level)))
    weakest = int(np.argmin(evidence))
    above, below = [(above, each) for above, others in compared for each in others][weakest]
    pair = f"{players[above]} over {players[below]}"
    least = float(evidence[weakest])
    found = f"log evidence {least:.2f}" if np.isfinite(least) else "no evidence yet"  # a tie, or no spread
    detail = f"weakest comparison: {pair}, {found} of {needed:.2f}"
    return bool(evidence[weakest] > needed), claim, detail, [above for above, _ in compared]


def _log_evidence_above(estimate: Influence, player: int, others: list[int]) -> FloatArray:
    """Give the log evidence that a player exceeds each of the others; −∞ where the estimates say otherwise.

    Shapes: (others,).
    """
    pieces = estimate.pieces[:, [player]] - estimate.pieces[:, others]  # (pieces, others)
    gap = estimate.value[player] - estimate.value[others]
    error = np.sqrt((pieces**2).sum(axis=0))
    usable = (gap > 0) & (error > 1e-12 * np.abs(gap))  # an error as small as rounding is none, and proves nothing
    score = np.divide(gap, error, out=np.zeros(gap.shape), where=usable)
    found = log_evidence(cautious_t(score, skewness_of(pieces)), np.minimum(estimate.dof[player], estimate.dof[others]))
    return np.where(usable, found, -np.inf)
