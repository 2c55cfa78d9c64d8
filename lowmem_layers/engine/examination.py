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
import torch

from lowmem_layers.engine.batches import Batch, plain_inputs, tree_inputs
from lowmem_layers.engine.reference import reference_loglikelihoods
from lowmem_layers.engine.trie import Row, plain_rows, trie_rows
from lowmem_layers.errors import RemovalError
from lowmem_layers.game.players.tree import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import LayerCall, prologue
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

Score = Callable[[Batch, Callable[[Batch], dict[str, Any]], Sequence[Removed]], np.ndarray]
"""Scores a batch by the sweep. Shapes: (coalitions, choices)."""

_LONG_TOKENS = 1027
_WIDEST_WINDOW = 8192
_REFUSALS = (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Verdict:
    """What the self-test found. Units: gaps in nats, the largest over coalitions and choices.

    `verified_tokens` is the length up to which the family's own masks were seen to be ours; longer items get plain
    rows.
    """

    takes_tries: bool
    reason: str
    sweep_gap: float
    trie_gap: float
    verified_tokens: int = 0


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
    verified = _verified_tokens(model) if takes else 0
    return Verdict(takes and verified > 0, reason, gap, trie_gap, verified)


def _verified_tokens(model: DecoderModel) -> int:
    """Compare the family's own masks of one long sequence with ours for it, layer by layer; 0 where they differ.

    Long enough to pass the sliding window that the config names, so that what a window means to the family is seen.
    """
    window = getattr(model.config, "sliding_window", None) or 0
    length = min(model.max_length, max(_LONG_TOKENS, window + 3 if window <= _WIDEST_WINDOW else 0))
    row = Row(tuple(3 + i % 5 for i in range(length)), tuple(range(-1, length - 1)), ())
    batch, layers = Batch((row,)), model.anatomy.layers
    own = prologue(model.module, layers, plain_inputs(batch, model.device)).calls
    ours = prologue(model.module, layers, _tree(model)(batch)).calls
    return length if all(torch.equal(_seen(a, length), _seen(b, length)) for a, b in zip(own, ours, strict=True)) else 0


def _seen(call: LayerCall, length: int) -> torch.Tensor:
    """Read off a layer's mask which position sees which; no mask means that all before it. Shapes: (T, T) bool."""
    mask = call.kwargs.get("attention_mask", next((a for a in call.args if _is_mask(a)), None))
    if mask is None:
        return torch.ones(length, length, dtype=torch.bool).tril()
    seen = mask if mask.dtype == torch.bool else mask == 0
    return seen[0, 0, -length:, :length].cpu()


def _is_mask(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dim() == 4


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
