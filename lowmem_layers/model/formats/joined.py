"""One weight put together from several packed ones: the experts of a mixture, or projections that a model joins.

Checkpoints store each expert's matrices on their own, models one stack of them (experts, rows, columns). Here each
keeps its own packing: `pieces` of an expert stand below each other, and equal parts of all experts lie in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.model.formats.format import Packed, WeightFormat


@dataclass(frozen=True)
class Joined:
    """Pieces, each in one of `formats`.

    Part `scales` of piece 1 is called `1.scales` and has one more dimension, that of the experts. The settings say how
    many pieces an expert has and, for each, its format, its rows and its own settings: `1.set.bits`.
    """

    formats: Mapping[str, WeightFormat]
    name: str = "joined"

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut whole experts out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        height = packed.shape[-2]
        experts = slice(start // height, stop // height)
        if start % height or stop % height:
            raise ValueError(f"rows {start} to {stop} are not whole experts of {height} rows")
        parts = {name: part[experts] for name, part in packed.parts.items()}  # (experts, ...)
        return Packed(self, (stop - start, packed.shape[-1]), parts, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Write each piece into its rows of `out`."""
        columns = packed.shape[-1]
        flat = out.view(-1, columns)  # (experts × rows, columns)
        row = 0
        for expert in range(next(iter(packed.parts.values())).shape[0]):
            for index in range(int(packed.settings["pieces"])):
                form = self.formats[str(packed.settings[f"{index}.format"])]
                height = int(packed.settings[f"{index}.rows"])
                parts = {name: part[expert] for name, part in _without(f"{index}.", packed.parts).items()}
                piece = Packed(form, (height, columns), parts, _without(f"{index}.set.", packed.settings))
                form.unpack(piece, flat[row : row + height])
                row += height


def stack(experts: Sequence[Sequence[Packed]], shape: tuple[int, ...]) -> Packed:
    """Join packed matrices: those of an expert one below the other, the experts behind each other.

    Shapes: (E, rows, columns), or (rows, columns) of a single "expert".

    Raises:
        ValueError: the experts are not packed alike, or do not fill `shape`.
    """
    first = experts[0]
    expected = (len(experts), sum(piece.shape[0] for piece in first), first[0].shape[1])
    if shape not in (expected, expected[1:] if len(experts) == 1 else expected):
        raise ValueError(f"{len(experts)} times {[piece.shape for piece in first]} does not fill {shape}")
    parts: dict[str, torch.Tensor] = {}
    settings: dict[str, str | int | float | bool] = {"pieces": len(first)}
    for index, model in enumerate(first):
        alike = [expert[index] for expert in experts]
        if any(_kind(piece) != _kind(model) for piece in alike):
            raise ValueError("the experts are not packed alike")
        settings |= {f"{index}.format": model.format.name, f"{index}.rows": model.shape[0]}
        settings |= {f"{index}.set.{key}": value for key, value in model.settings.items()}
        # (rows, columns) of each expert -> (experts, rows, columns)
        parts |= {f"{index}.{part}": torch.stack([piece.parts[part] for piece in alike]) for part in model.parts}
    return Packed(Joined({piece.format.name: piece.format for piece in first}), shape, parts, settings)


def _without(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Pick what is called by a prefix, and leave the prefix away."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _kind(packed: Packed) -> tuple[object, ...]:
    """Say all that packed pieces of different experts must have in common."""
    shapes = {name: (part.shape, part.dtype) for name, part in packed.parts.items()}
    return packed.format, packed.shape, dict(packed.settings), shapes
