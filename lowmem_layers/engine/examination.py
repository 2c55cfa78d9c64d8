"""What the engine asks of a model before it is believed: a few tokens, a few coalitions, in both ways.

The sweep must equal whole forward passes, else the model is refused. A row that branches must equal its sequences laid
out one by one, else the model is given plain rows. A comparison that sees nothing would pass, too: so the same row is
also scored with a wrong mask, in which choices see each other, and must differ far more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lowmem_layers.engine.batches import MASKED_KINDS, Batch, plain_inputs, tree_inputs
from lowmem_layers.engine.changes import Changes
from lowmem_layers.engine.lockstep import Pass, run_in_step
from lowmem_layers.engine.reference import reference_pass
from lowmem_layers.engine.trie import Row, plain_rows, trie_rows
from lowmem_layers.errors import RemovalError
from lowmem_layers.game.players.tree import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import LayerCall, prologue
from lowmem_layers.model.anatomy.removal import refusing
from lowmem_layers.model.memory import all_finite, is_machines_fault
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

Inputs = Callable[[Batch], dict[str, Any]]
Score = Callable[[Sequence[Batch], Inputs, Sequence[Removed]], list[np.ndarray]]
"""Scores batches of one item each by one sweep. Shapes: per batch (coalitions, choices)."""

_LONG_TOKENS = 1027
_WIDEST_WINDOW = 8192
_LONGEST_WINDOW = 512  # of the rows that are compared number by number; plain rows are taken where it is longer
_WINDOW = re.compile(r"window|chunk|top_?k|block_size|local_size", re.IGNORECASE)
_OF_EXPERTS = re.compile(r"expert|moe|router|group|max_window_layers|^top_k$|gate|chunk_size_feed_forward|vocab")


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


def examine_engine(model: DecoderModel, score: Score, changes: Changes | None = None) -> Verdict:
    """Compare sweep and reference, then branching and plain rows. `changes` are those of the sweep (None: removals).

    Raises:
        RemovalError: the sweep does not equal the model's own forward with the sublayers removed.
    """
    # 1) three choices behind one context that is longer than any window of attention's own, two of them with a common
    #    first token; three coalitions: the full model, one sublayer in the middle, and a scattered removal
    n_tokens = min(model.module.get_input_embeddings().weight.shape[0], model.shape.vocabulary)
    middle = len(model.players) // 2
    reach = max([0, *(size for size in windows(model.config).values() if size < model.max_length)])
    n_context = 5 + min(reach, _LONGEST_WINDOW, max(0, model.max_length - 12))
    draw = np.random.default_rng(0).integers(3, n_tokens - 1, n_context + 7).tolist()
    context, ends = tuple(draw[7:] if reach else draw[:5]), draw[:7] if reach else draw[5:]
    choices = tuple(
        EncodedChoice(context + tuple(ends[i] for i in ending), len(ending))
        for ending in [(0, 1, 2), (0, 3), (4, 5, 6)]
    )
    item = EncodedItem("selftest", "0", choices, 0, "0")
    coalitions = [(), (middle,), tuple(sorted({0, max(0, middle - 1), len(model.players) - 1}))]
    # 2) the sweep against whole forward passes, which share each layer's visit
    what = "with sublayers removed" if changes is None else "with sublayers changed"
    passes = [reference_pass(model, choice, removed, changes) for removed in coalitions for choice in choices]
    named = [replace(each, compute=_refused(model, what, each.compute)) for each in passes]
    causal = Pass(_refused(model, "run as a whole", lambda: _check_causal(model, draw[:12])), nullcontext)
    expected = np.array(run_in_step(model, [causal, *named])[1:]).reshape(len(coalitions), len(choices))
    with refusing(model.module, "driven layer by layer"):
        rows = Batch(tuple(plain_rows([item])))
        (plain,) = score([rows], lambda batch: plain_inputs(batch, model.device), coalitions)
    gap = float(np.abs(plain - expected).max())
    if not gap <= _tolerance(model, expected):
        raise RemovalError(
            f"{type(model.module).__name__}: driven layer by layer, the model's log-likelihoods differ from its own "
            f"forward's by up to {gap:.3g} nats",
            "this family does something between its layers that is not known here; it can't be ablated exactly",
        )
    # 3) a row that branches against plain ones, and against one in which every node sees all nodes before it
    row = trie_rows([item], cost=float)[0]
    meaning = dict.fromkeys(program.whole for program in model.programs if program.whole)  # what removing means
    refused = _refuses_tree_masks(model, row)
    if refused:
        return Verdict(False, "; ".join((refused, *meaning)), gap, float("nan"))
    blind = replace(row, parents=tuple(range(-1, len(row) - 1)))
    branching, wrong = score([Batch((row,)), Batch((blind,))], _tree(model), coalitions)
    trie_gap, contrast = float(np.abs(branching - plain).max()), float(np.abs(wrong - plain).max())
    takes = trie_gap <= min(_tolerance(model, plain), contrast / 4)
    gaps = f"branching rows differ from plain ones by {trie_gap:.2g} nats, rows with a wrong mask by {contrast:.2g}"
    # 4) the family's own masks of one long sequence against ours for it, layer by layer
    verified = verified_length(model.config, model.max_length) if takes and _has_our_masks(model) else 0
    return Verdict(takes and verified > 0, "; ".join((gaps, *meaning)), gap, trie_gap, verified)


def refuse_if_not_causal(model: DecoderModel) -> None:
    """Look for a deeper reason why a model's layers cannot be taken apart, by one pass of its own forward.

    Raises:
        RemovalError: its predictions see later tokens.
    """
    try:
        with model.streaming():
            _check_causal(model, list(range(3, 15)))
    except RemovalError:
        raise
    except Exception as error:  # it needs more than text, or runs its layers otherwise than in turn
        if is_machines_fault(error):
            raise


def _refused(model: DecoderModel, what: str, compute: Callable[[], Any]) -> Callable[[], Any]:
    """Name what a pass was about where the model's own code fails in it."""

    def named() -> Any:
        with refusing(model.module, what):
            return compute()

    return named


def _check_causal(model: DecoderModel, tokens: list[int]) -> None:
    """See that no token changes what is predicted before it, or log-likelihoods of texts would mean nothing.

    Raises:
        RemovalError: it does: a masked language model, a diffusion model, or a decoder whose config says otherwise.
    """
    rows = torch.tensor([tokens, [*tokens[:-1], tokens[-1] - 1]], device=model.device)  # (2, T)
    logits = model.module(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits.float()
    before = logits[:, :-1]  # (2, T − 1, V)
    if not all_finite(before):
        name = str(model.dtype).removeprefix("torch.")
        raise RemovalError(
            f"{type(model.module).__name__}: its logits are not finite in {name}",
            "its states are too large for 16 bits: add --dtype float32"
            if model.dtype == torch.float16
            else "the weights or the config are damaged",
        )
    gap, size = (before[0] - before[1]).abs().max().item(), before.abs().max().item()
    if not gap <= (1e-3 if model.dtype.itemsize >= 4 else 3e-2) * max(1.0, size):
        raise RemovalError(
            f"{type(model.module).__name__}: another last token changes the logits before it by up to {gap:.3g}",
            "it does not predict each token from those before it alone; lowmem-layers takes causal language models",
        )


def _refuses_tree_masks(model: DecoderModel, row: Row) -> str:
    """Say why a family does not accept tree masks. Return an empty text where it does.

    Only the family's own code in front of its layers runs here. It has just accepted the same tokens with its own
    masks, so a ValueError is about the form of ours: ALiBi families (BLOOM, Falcon) unpack the mask's two dimensions
    to count positions, and a tree mask has four. Any other exception is unexpected, and is raised.
    """
    if any(player.kind == "mixer" for player in model.players):
        return "mixers carry a state from token to token, which knows no branches"
    if any(program.ffn_mixes for program in model.programs):
        return "feed-forwards mix tokens by their place in the row"
    for name, size in windows(model.config).items():
        # A sliding window is also compared mask by mask; what else attention leaves out, it leaves out inside.
        if "sliding_window" not in name and _LONGEST_WINDOW < size < model.max_length:
            return f"{name} is {size:,}: longer than the {_LONGEST_WINDOW} tokens that branching rows are tested with"
    unknown = sorted(set(getattr(model.config, "layer_types", None) or ()) - MASKED_KINDS)
    if unknown:
        return f"layers of the kind {', '.join(unknown)} take no mask of a tree"
    try:
        calls = prologue(model.module, model.anatomy.layers, _tree(model)(Batch((row,)))).calls
    except ValueError as refusal:
        return f"ValueError: {refusal}".splitlines()[0]
    given = [value for call in calls for value in (*call.args, *call.kwargs.values())]
    deepest = max((v.dim() for v in given if isinstance(v, torch.Tensor)), default=0)  # GPT-1 adds two to any mask
    return f"its own code makes {deepest} dimensions of a mask's four" if deepest > 4 else ""


def windows(config: Any) -> dict[str, int]:
    """List what a config says about how many tokens attention looks at: windows, chunks and numbers of chosen keys."""
    fields = {**vars(config), "sliding_window": getattr(config, "sliding_window", None)}
    found = {name: value for name, value in fields.items() if _WINDOW.search(name) and not _OF_EXPERTS.search(name)}
    return {name: value for name, value in found.items() if type(value) is int and value > 0}


def verified_length(config: Any, max_length: int) -> int:
    """Say up to how many tokens items are laid out as tries, if a model takes tries. Longer items get plain rows.

    The examination compares masks of this length. It is longer than the sliding window that the config names, so that
    the family's own meaning of a window is seen.
    """
    window = getattr(config, "sliding_window", None) or 0
    return min(max_length, max(_LONG_TOKENS, window + 3 if window <= _WIDEST_WINDOW else 0))


def _has_our_masks(model: DecoderModel) -> bool:
    """Compare the masks that the layers of one long sequence get from the family with those made here."""
    length = verified_length(model.config, model.max_length)
    row = Row(tuple(3 + i % 5 for i in range(length)), tuple(range(-1, length - 1)), ())
    batch, layers = Batch((row,)), model.anatomy.layers
    own = prologue(model.module, layers, plain_inputs(batch, model.device)).calls
    ours = prologue(model.module, layers, _tree(model)(batch)).calls
    return all(torch.equal(_seen(a, length), _seen(b, length)) for a, b in zip(own, ours, strict=True))


def _seen(call: LayerCall, length: int) -> torch.Tensor:
    """Read off a layer's mask which position sees which; without a mask, all before it. Shapes: (T, T) bool."""
    positional = (a for a in call.args if isinstance(a, torch.Tensor) and a.dim() == 4)
    mask = call.kwargs.get("attention_mask", next(positional, None))
    if mask is None:
        return torch.ones(length, length, dtype=torch.bool).tril()
    seen = mask if mask.dtype == torch.bool else mask == 0  # (1, 1, T, T)
    return seen[0, 0, -length:, :length].cpu()


def _tree(model: DecoderModel) -> Inputs:
    return lambda batch: tree_inputs(batch, model.config, model.dtype, model.device)


def _tolerance(model: DecoderModel, loglikelihoods: np.ndarray) -> float:
    """Allow for rounding: a share of the largest log-likelihood, by the type of the hidden states.

    (In float64 some families still compute positions in float32.)
    """
    share = {8: 1e-7, 4: 1e-5}.get(model.dtype.itemsize, 3e-2)
    return share * max(1.0, float(np.abs(loglikelihoods).max()))
