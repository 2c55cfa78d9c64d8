"""What sublayers do to the residual stream of the full model: one pass an item, no sublayer removed.

These are the proxies by which others rank sublayers without measuring: how far the stream turns, how large what is
added is, and how large its largest number. Sources: block influence, Men et al. 2024 (arXiv 2403.03853), 1 − the mean
cosine of states before and behind; angular distance, Gromov et al. 2024 (arXiv 2403.17887), arccos / π, there at the
last token, here averaged over all; largest activations, Sun et al. 2024 (arXiv 2402.17762).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lowmem_layers.engine.batches import Batch, plain_inputs
from lowmem_layers.engine.trie import Row
from lowmem_layers.errors import RemovalError
from lowmem_layers.game.players.player import Role
from lowmem_layers.model.accelerators import to_float64
from lowmem_layers.model.anatomy.branches import branch_output
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import LayerCall, prologue
from lowmem_layers.model.anatomy.layer_examination import BOTH
from lowmem_layers.model.homes.store import Visit
from lowmem_layers.tasks.items import EncodedItem


@dataclass(frozen=True, eq=False)
class TrunkStatistics:
    """How each sublayer changes each item's states, averaged over tokens; the largest activation is a maximum.

    Shapes: (items, players) each, `layer_influence` (items, layers): block influence of whole decoder layers.
    `branch_norm` is the length of what is added over that of the stream it is added to.
    """

    block_influence: np.ndarray
    angular_distance: np.ndarray
    branch_norm: np.ndarray
    largest_activation: np.ndarray
    layer_influence: np.ndarray


@torch.inference_mode()
def trunk_statistics(model: DecoderModel, items: Sequence[EncodedItem], budget_bytes: int) -> TrunkStatistics:
    """Drive the gold answer's tokens of every item through an examined model, one sublayer after the other.

    Units: `budget_bytes` bounds the states that are alive at once; each such group visits every layer once.

    Raises:
        RemovalError: the model's layers are driven as a whole, so that nobody sees what one sublayer adds.
    """
    found = np.zeros((4, len(items), len(model.players)))  # (statistics, items, players)
    of_layers = np.zeros((len(items), len(model.programs)))  # (items, layers)
    entered: dict[int, torch.Tensor] = {}
    for seen in _driven(model, items, budget_bytes):
        found[:, seen.item, seen.position] = _measure(seen.given, seen.added)
        roles = model.programs[seen.layer].anatomy.roles
        first = entered.setdefault(seen.item, seen.state)
        if seen.role == roles[-1]:
            of_layers[seen.item, seen.layer] = _measure(first, seen.state + seen.added - first)[0]
            del entered[seen.item]
    return TrunkStatistics(found[0], found[1], found[2], found[3], of_layers)


@torch.inference_mode()
def branch_means(model: DecoderModel, items: Sequence[EncodedItem], budget_bytes: int) -> torch.Tensor:
    """Average what each sublayer adds over all tokens of all items' gold answers, in the full model.

    Every token counts once, those of the first positions too. Shapes: (players, D), in the states' type.

    Raises:
        RemovalError: the model's layers are driven as a whole, so that nobody sees what one sublayer adds.
    """
    sums = to_float64(torch.zeros(len(model.players), model.shape.hidden, device=model.device))
    for seen in _driven(model, items, budget_bytes):
        sums[seen.position] += to_float64(seen.added).sum(dim=(0, 1))
    n_tokens = sum(len(item.choices[item.gold].tokens) - 1 for item in items)
    return (sums / n_tokens).to(model.device, model.dtype)


@dataclass(frozen=True, eq=False)
class _Seen:
    """One sublayer on one item: its input, what it adds, and the stream that this is added to. Shapes: (1, T, D)."""

    item: int
    layer: int
    role: Role
    position: int
    given: torch.Tensor
    added: torch.Tensor
    state: torch.Tensor


def _driven(model: DecoderModel, items: Sequence[EncodedItem], budget_bytes: int) -> Iterator[_Seen]:
    """Drive the gold answers' tokens through the full model, layer by layer, and show what each sublayer adds.

    Raises:
        RemovalError: the model's layers are driven as a whole, so that nobody sees what one sublayer adds.
    """
    if whole := next((program.whole for program in model.programs if program.whole), ""):
        raise RemovalError(
            f"{type(model.module).__name__}: what each sublayer adds cannot be seen on its own: {whole}",
            "removing works for this model; mean outputs and proxies need layers that add one sublayer after another",
        )
    for group in _groups(model, items, budget_bytes):
        # 1) each item's states in front of the first layer
        states: list[torch.Tensor] = []
        calls: list[tuple[LayerCall, ...]] = []
        for index in group:
            tokens = items[index].choices[items[index].gold].tokens[:-1]
            row = Row(tokens, tuple(range(-1, len(tokens) - 1)), ())
            start = prologue(model.module, model.anatomy.layers, plain_inputs(Batch((row,)), model.device))
            states.append(start.hidden)  # (1, T, D)
            calls.append(start.calls)
        # 2) layer by layer, all items
        for visit in model.store.sweep([Visit(layer, BOTH) for layer in range(len(model.programs))]):
            program = model.programs[visit.layer]
            for place, index in enumerate(group):
                x = states[place]
                entered = x
                for role in program.anatomy.roles:
                    given = entered if program.parallel else x
                    added = branch_output(program.anatomy, role, program.forms[role], given, calls[place][visit.layer])
                    position = model.anatomy.position(visit.layer, role)
                    yield _Seen(index, visit.layer, role, position, given, added, x)
                    x = x + added
                states[place] = x * program.anatomy.scale


def _measure(x: torch.Tensor, added: torch.Tensor) -> list[float]:
    """Measure one sublayer on one item. Shapes: `x`, `added` (1, T, D)."""
    before, branch = x.float(), added.float()
    after = before + branch
    lengths = before.norm(dim=-1).clamp_min(1e-30), after.norm(dim=-1).clamp_min(1e-30)  # (1, T)
    cosine = ((before / lengths[0][..., None]) * (after / lengths[1][..., None])).sum(-1).clamp(-1.0, 1.0)
    turned = torch.arccos(cosine) / torch.pi
    relative = branch.norm(dim=-1) / lengths[0]
    return [(1.0 - cosine).mean().item(), turned.mean().item(), relative.mean().item(), branch.abs().max().item()]


def _groups(model: DecoderModel, items: Sequence[EncodedItem], budget_bytes: int) -> Iterator[list[int]]:
    """Cut items into groups whose states fit; one item at least."""
    group: list[int] = []
    used = 0
    for index, item in enumerate(items):
        n_tokens = len(item.choices[item.gold].tokens)
        # its states, and the masks of at most two kinds of layers
        size = n_tokens * model.shape.hidden * model.dtype.itemsize + 2 * n_tokens**2 * model.dtype.itemsize
        if group and used + size > budget_bytes:
            yield group
            group, used = [], 0
        group.append(index)
        used += size
    if group:
        yield group
