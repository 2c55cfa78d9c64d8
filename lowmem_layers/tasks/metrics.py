"""From log-likelihoods of choices to one value an item and coalition."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowmem_layers.errors import UsageError

Value = Literal["acc", "acc_norm", "loglikelihood", "margin", "probability", "nll_per_byte"]
VALUES: tuple[Value, ...] = get_args(Value)
Floats = NDArray[np.float64]

_NEEDS_CHOICES = ("acc", "acc_norm", "margin", "probability")


def item_values(
    loglikelihoods: ArrayLike, gold: ArrayLike, choice_chars: ArrayLike, choice_bytes: ArrayLike, value: str
) -> Floats:
    """Turn log-likelihoods into values; larger is always better.

    - `acc`: 1 if the gold choice is the most likely one, else 0; the first index wins ties.
    - `acc_norm`: the same after dividing by the choice's length in characters (lm-evaluation-harness: `acc_norm`).
    - `loglikelihood`: of the gold choice, in nats.
    - `margin`: gold's log-likelihood minus the best other choice's, in nats.
    - `probability`: of gold among the choices (softmax over them).
    - `nll_per_byte`: the *negative* of gold's negative log-likelihood in nats per byte, so that larger is better.

    Non-finite log-likelihoods are answered, never dropped. NaN is never chosen, and an item whose gold is NaN is
    wrong; −inf is an ordinary, smallest number. `loglikelihood` and `nll_per_byte` pass on what gold has; `margin`
    and `probability` are NaN if any choice of the item is NaN, or where they are undefined (all choices −inf).

    Shapes: `loglikelihoods` (items, coalitions, choices), NaN beyond an item's own choices; `gold` (items,);
        `choice_chars` and `choice_bytes` (items, choices), 0 beyond an item's own choices. Result (items, coalitions).

    Raises:
        UsageError: an unknown value, or one that compares choices for items that have a single one.
    """
    scores = np.asarray(loglikelihoods, dtype=np.float64)  # (items, coalitions, choices)
    chars, n_bytes = np.asarray(choice_chars), np.asarray(choice_bytes)
    answer = np.asarray(gold, dtype=np.intp)
    exists = chars > 0  # (items, choices)
    _check(scores, answer, exists, n_bytes, value)
    return _compute(scores, answer, chars, n_bytes, exists, value)


def _compute(scores: Floats, answer: NDArray, chars: NDArray, n_bytes: NDArray, exists: NDArray, value: str) -> Floats:
    if value == "acc":
        return _is_chosen(scores, answer, exists)
    if value == "acc_norm":
        return _is_chosen(scores / np.where(exists, chars, 1)[:, None, :], answer, exists)
    if value == "margin":
        return _margin(scores, answer, exists)
    if value == "probability":
        return _probability(scores, answer, exists)
    of_gold = _take(scores, answer)
    return of_gold if value == "loglikelihood" else of_gold / _take(n_bytes[:, None, :], answer)


def _check(scores: Floats, answer: NDArray, exists: NDArray, n_bytes: NDArray, value: str) -> None:
    if value not in VALUES:
        raise UsageError(f"there is no value {value!r}", f"values: {', '.join(VALUES)}")
    if scores.ndim != 3 or exists.shape != (scores.shape[0], scores.shape[2]) or n_bytes.shape != exists.shape:
        raise ValueError(f"loglikelihoods {scores.shape} do not fit lengths {exists.shape}, {n_bytes.shape}")
    if answer.shape != scores.shape[:1] or not _names_a_choice(answer, exists):
        raise ValueError(f"gold {answer.shape} must name one existing choice of each of {scores.shape[0]} items")
    if value in _NEEDS_CHOICES and bool((exists.sum(axis=1) < 2).any()):
        raise UsageError(
            f"{value} compares choices, and some items have only one", "use loglikelihood or nll_per_byte for text"
        )


def _names_a_choice(answer: NDArray, exists: NDArray) -> bool:
    inside = (answer >= 0) & (answer < exists.shape[1])
    return bool(inside.all()) and bool(exists[np.arange(len(answer)), answer].all())


def _take(table: NDArray, answer: NDArray) -> NDArray:
    """Pick gold's entry. Shapes: (items, coalitions, choices), (items,) -> (items, coalitions)."""
    return np.take_along_axis(table, answer[:, None, None], axis=2)[:, :, 0]


def _is_chosen(scores: Floats, answer: NDArray, exists: NDArray) -> Floats:
    usable = exists[:, None, :] & ~np.isnan(scores)
    best = np.where(usable, scores, -np.inf).max(axis=2, keepdims=True)
    winners = usable & (scores == best)
    first = winners.argmax(axis=2)  # argmax of booleans: the first True
    return ((first == answer[:, None]) & winners.any(axis=2)).astype(np.float64)


def _margin(scores: Floats, answer: NDArray, exists: NDArray) -> Floats:
    others = exists & (np.arange(exists.shape[1]) != answer[:, None])
    best_other = np.where(others[:, None, :], scores, -np.inf).max(axis=2)  # max passes NaN on
    with np.errstate(invalid="ignore"):  # −inf − −inf is NaN: undefined, and said so
        return _take(scores, answer) - best_other


def _probability(scores: Floats, answer: NDArray, exists: NDArray) -> Floats:
    padded = np.where(exists[:, None, :], scores, -np.inf)
    with np.errstate(invalid="ignore"):  # all −inf: NaN
        weights = np.exp(padded - padded.max(axis=2, keepdims=True))
        return _take(weights, answer) / weights.sum(axis=2)
