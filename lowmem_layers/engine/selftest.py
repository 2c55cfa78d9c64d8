"""What the engine asks of a model before it is believed: a few tokens, a few coalitions, in both ways.

The sweep must equal whole forward passes, and a row that branches must equal its sequences laid out one by one; else
the model is refused, or given plain rows. So that a comparison can't pass for want of sensitivity, the same row with
choices that see each other is scored too, and must differ far more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowmem_layers.engine.batches import Batch, plain_inputs, tree_inputs
from lowmem_layers.engine.reference import reference_loglikelihoods
from lowmem_layers.engine.trie import plain_rows, trie_rows
from lowmem_layers.errors import RemovalError
from lowmem_layers.game.tree import Removed
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

Score = Callable[[Batch, Callable[[Batch], dict[str, Any]], Sequence[Removed]], np.ndarray]
"""Scores a batch by the sweep. Shapes: (coalitions, choices)."""

_REFUSALS = (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Verdict:
    """What the self-test found. Units: gaps in nats, the largest over coalitions and choices."""

    takes_tries: bool
    reason: str
    sweep_gap: float
    trie_gap: float


def examine_engine(model: DecoderModel, score: Score) -> Verdict:
    """Compare sweep and reference, then branching and plain rows.

    Raises:
        RemovalError: the sweep does not equal the model's own forward with the sublayers removed.
    """
    item, coalitions = _item(model), _coalitions(len(model.players))
    expected = reference_loglikelihoods(model, [item], coalitions)[0]
    plain = score(Batch(tuple(plain_rows([item]))), lambda batch: plain_inputs(batch, model.device), coalitions)
    gap = float(np.abs(plain - expected).max())
    if not gap <= _tolerance(model, expected):
        raise RemovalError(
            f"{type(model.module).__name__}: driven layer by layer, the model's log-likelihoods differ from its own "
            f"forward's by up to {gap:.3g} nats",
            "this family does something between its layers that is not known here; it can't be ablated exactly",
        )
    return _compare_layouts(model, item, coalitions, score, plain, gap)


def _compare_layouts(
    model: DecoderModel, item: EncodedItem, coalitions: Sequence[Removed], score: Score, plain: np.ndarray, gap: float
) -> Verdict:
    row = trie_rows([item], cost=float)[0]
    blind = replace(row, parents=tuple(range(-1, len(row) - 1)))  # every node sees all nodes before it
    try:
        branching, wrong = (score(Batch((each,)), _tree(model), coalitions) for each in (row, blind))
    except _REFUSALS as refusal:
        return Verdict(False, f"{type(refusal).__name__}: {refusal}".splitlines()[0], gap, float("nan"))
    trie_gap, contrast = float(np.abs(branching - plain).max()), float(np.abs(wrong - plain).max())
    takes = trie_gap <= min(_tolerance(model, plain), contrast / 4)
    reason = f"branching rows differ from plain ones by {trie_gap:.2g} nats, rows with a wrong mask by {contrast:.2g}"
    return Verdict(takes, reason, gap, trie_gap)


def _tree(model: DecoderModel) -> Callable[[Batch], dict[str, Any]]:
    return lambda batch: tree_inputs(batch, model.config, model.dtype, model.device)


def _tolerance(model: DecoderModel, loglikelihoods: np.ndarray) -> float:
    """Allow for rounding: a share of the largest log-likelihood, by the type of the hidden states.

    (In float64 some families still compute positions in float32.)
    """
    share = {8: 1e-7, 4: 1e-5}.get(model.dtype.itemsize, 3e-2)
    return share * max(1.0, float(np.abs(loglikelihoods).max()))


def _coalitions(n_players: int) -> list[Removed]:
    """Choose the full model, one sublayer in the middle, and a scattered removal."""
    middle = n_players // 2
    return [(), (middle,), tuple(sorted({0, middle - 1, n_players - 1}))]


def _item(model: DecoderModel) -> EncodedItem:
    """Make an item of arbitrary tokens: three choices behind one context, two of them with a common first token."""
    draw = np.random.default_rng(0).integers(3, model.module.get_input_embeddings().weight.shape[0] - 1, 12).tolist()
    context, endings = tuple(draw[:5]), [(5, 6, 7), (5, 8), (9, 10, 11)]
    choices = tuple(EncodedChoice(context + tuple(draw[i] for i in ending), len(ending)) for ending in endings)
    return EncodedItem("selftest", "0", choices, 0, "0")
