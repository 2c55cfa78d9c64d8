"""A mixture's experts brought in one at a time, where a slot for all of them would not fit.

transformers keeps a mixture's experts as stacks (experts, rows, columns) in one module, whose forward is given hidden
states, each token's chosen experts, and their weights. Here that module is called once for each chosen expert, holding
just this one, on the tokens that chose it. Products and sums are those of transformers' grouped implementation, in the
same order: each pair of token and expert is weighted on its own, then the pairs of a token are added up. So on one CPU
thread the numbers are the same to the bit; on several, a product of a few rows is cut differently than the grouped
product of all experts and may differ by a rounding. On CUDA they do not depend on the order in which threads add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.formats import Packed, unpack_slice
from lowmem_layers.model.homes.places import Place


def slot_numbers(places: Sequence[Place], *, one_expert: bool) -> int:
    """Count the numbers of a sublayer's dense slot."""
    if not one_expert:
        return sum(prod(place.shape) for place in places)
    plain, stacks = split(places)
    singles = [sum(prod(place.shape[1:]) for place in group) for group in stacks.values()]
    return sum(prod(place.shape) for place in plain) + max(singles, default=0)


def split(places: Iterable[Place]) -> tuple[list[Place], dict[nn.Module, list[Place]]]:
    """Separate the places of experts that can be brought in one at a time, by their module, from all others."""
    plain: list[Place] = []
    stacks: dict[nn.Module, list[Place]] = {}
    for place in places:
        if place.n_experts:
            stacks.setdefault(place.module, []).append(place)
        else:
            plain.append(place)
    return plain, stacks


class OneByOne:
    """Stand in for an experts module's forward during a visit.

    `slot` holds one expert's dense weights. Whoever reads a parameter outside of a call sees its shape and NaNs.
    `treat`, where it is set, changes each expert's dense weight in place before it is used.
    """

    treat: Callable[[Place, torch.Tensor], None] | None = None

    def __init__(self, module: Any, places: Sequence[Place], packed: Mapping[str, Packed], slot: torch.Tensor) -> None:
        self._module = module
        self._places = places
        self._packed = packed
        self._dense: dict[str, torch.Tensor] = {}  # one expert's share of each stack
        cursor = 0
        for place in places:
            size = prod(place.shape[1:])
            self._dense[place.attribute] = slot[cursor : cursor + size].view(place.shape[1:])
            cursor += size
        self._forward: Callable[..., torch.Tensor] = module.forward
        self._shapes = slot.new_full((1,), float("nan"))
        self._count = int(module.num_experts)
        self._rest()
        module.forward = self

    def leave(self) -> None:
        """Give the module its own forward back."""
        self._module.__dict__.pop("forward", None)

    def __call__(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute what the experts add. Shapes: hidden (T, D), chosen and weights (T, K) → (T, D)."""
        n_chosen = chosen.shape[-1]
        # 1) pairs of token and expert, sorted by expert
        order = torch.argsort(chosen.reshape(-1), stable=True)  # (T × K,)
        counts = torch.bincount(chosen.reshape(-1), minlength=self._count).tolist()
        share = weights.reshape(-1, 1)  # (T × K, 1)
        pairs = hidden.new_zeros(len(order), hidden.shape[-1], dtype=torch.promote_types(hidden.dtype, weights.dtype))
        start = 0
        try:
            # 2) the module's own forward for each expert's pairs, as if it were the only one, with weight 1
            self._module.num_experts = 1
            for expert, count in enumerate(counts[: self._count]):
                if count:
                    for place in self._places:
                        dense = self._dense[place.attribute]
                        unpack_slice(self._packed[place.key], expert, dense)
                        if self.treat is not None:
                            self.treat(place, dense)
                        getattr(self._module, place.attribute).data = dense.unsqueeze(0)  # (1, rows, columns)
                    rows = order[start : start + count]
                    mine = hidden[rows // n_chosen]  # (count, D)
                    found = self._forward(mine, chosen.new_zeros(count, 1), weights.new_ones(count, 1))
                    pairs[rows] = found * share[rows]
                start += count
        finally:
            self._rest()
        # 3) the sum over each token's experts
        return pairs.view(-1, n_chosen, hidden.shape[-1]).sum(dim=1).to(hidden.dtype)  # (T, K, D) -> (T, D)

    def _rest(self) -> None:
        """Show the parameters' shapes, full of NaNs, and the number of experts that the module has."""
        self._module.num_experts = self._count
        for place in self._places:
            getattr(self._module, place.attribute).data = self._shapes.expand(place.shape)
