"""What becomes of the sublayers that a coalition names: of each its change, and what computing it needs.

The sweep asks for it at each visit, the reference builds the same change into whole forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.player import Role
from lowmem_layers.game.players.tree import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import split_call
from lowmem_layers.model.anatomy.layer_examination import LayerProgram
from lowmem_layers.model.anatomy.removal import layer_without
from lowmem_layers.model.change import REMOVE, Change
from lowmem_layers.model.homes.rounding import NO_ROOM, RoundedWeights, Shelf

Rounded = Mapping[Role, RoundedWeights]
"""The rounded weights of a visited layer, by sublayer."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The change of each sublayer. Shapes: `of` N; `means` (N, D), what `mean` puts in a branch's place.

    `shelf` keeps quantised weights from tile to tile.
    """

    of: tuple[Change, ...]
    means: torch.Tensor | None = None
    shelf: Shelf = NO_ROOM

    @classmethod
    def alike(
        cls, n_players: int, change: Change = REMOVE, means: torch.Tensor | None = None, shelf: Shelf = NO_ROOM
    ) -> Changes:
        """Change every sublayer in the same way."""
        return cls((change,) * n_players, means, shelf)

    @property
    def passes(self) -> tuple[int, ...]:
        """Count how often each changed sublayer is computed."""
        return tuple(change.passes for change in self.of)

    def mean_of(self, position: int) -> torch.Tensor:
        """Give what stands for a branch's output. Shapes: (D,)."""
        if self.means is None:
            raise UsageError("the branches' mean outputs were not measured", "measure them with branch_means first")
        return self.means[position]

    def check(self, model: DecoderModel) -> None:
        """Refuse changes that mean nothing for this (examined) model.

        Raises:
            UsageError: a layer is driven as a whole, or both sublayers read its input, where the change needs more.
        """
        name = type(model.module).__name__
        for position, change in enumerate(self.of):
            program = model.programs[model.players[position].layer]
            if change.kind in ("mean", "repeat") and program.whole:
                raise UsageError(
                    f"{name}: --change {change.kind} needs layers that add one sublayer after another: {program.whole}",
                    "this model takes --change remove and quantise:FORMAT",
                )
            if change.kind == "repeat" and program.parallel:
                raise UsageError(
                    f"{name}: attention and feed-forward of a layer read the same input, so that running one of them "
                    "twice has no single meaning",
                    "this model takes --change remove, mean and quantise:FORMAT",
                )

    def rounded(self, model: DecoderModel, layer: int, roles: Iterable[Role]) -> Rounded:
        """Round the weights of a visited layer's sublayers, of those that are to be quantised."""
        anatomy = model.anatomy
        found: dict[Role, RoundedWeights] = {}
        for role in roles:
            into = self.of[anatomy.position(layer, role)].format
            if into is not None:
                found[role] = RoundedWeights(anatomy.layers[layer], role, into, model.dtype, self.shelf)
        return found


@contextmanager
def applied(model: DecoderModel, changes: Changes, changed: Removed) -> Iterator[None]:
    """Build changes into the model's own layers for the length of a `with` block, for its own forward.

    Everything is done around a layer's own forward, by removing its sublayers in turn: another route than the sweep's.
    """
    by_layer: dict[int, dict[Role, int]] = {}
    for position in changed:
        player = model.players[position]
        by_layer.setdefault(player.layer, {})[player.role] = position
    layers: list[Any] = [model.programs[number].anatomy.layer for number in by_layer]
    try:
        for layer, (number, positions) in zip(layers, by_layer.items(), strict=True):
            layer.forward = _changed_forward(model, number, positions, changes)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _changed_forward(
    model: DecoderModel, number: int, positions: Mapping[Role, int], changes: Changes
) -> Callable[..., Any]:
    """Make a decoder layer's forward with some of its sublayers changed."""
    program: LayerProgram = model.programs[number]
    anatomy, own = program.anatomy, program.anatomy.layer.forward
    of: dict[Role, Change] = {role: changes.of[position] for role, position in positions.items()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden, call = split_call(args, kwargs)

        def run(x: torch.Tensor, absent: Sequence[Role]) -> torch.Tensor:
            with layer_without(anatomy, *absent):
                output = own(x, *call.args, **call.kwargs)
            return output[0] if anatomy.answer.length else output

        means: dict[Role, torch.Tensor] = {
            role: changes.mean_of(positions[role]) for role, change in of.items() if change.kind == "mean"
        }
        twice = [role for role, change in of.items() if change.kind == "repeat"]
        # 1) in front of the layer: attention's mean, or attention once more
        if "attn" in means and not program.parallel:
            hidden = hidden + means.pop("attn")
        if "attn" in twice:
            hidden = run(hidden, ["ffn"]) / anatomy.scale
        # 2) the layer without what is removed or replaced, and with what is rounded
        with ExitStack() as stack:
            for weights in changes.rounded(model, number, of).values():
                stack.enter_context(weights.standing_in())
            hidden = run(hidden, [role for role, change in of.items() if not change.passes])
        # 3) behind it: what is left of the means, or the feed-forward once more
        for mean in means.values():
            hidden = hidden + mean * anatomy.scale
        if "ffn" in twice:
            hidden = run(hidden / anatomy.scale, ["attn"])
        return anatomy.answer.holding(hidden)

    return forward
