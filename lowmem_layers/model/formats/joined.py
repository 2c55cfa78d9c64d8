"""One weight put together from several packed ones: the experts of a mixture, or projections that a model joins.

Checkpoints store each expert's matrices on their own, models one stack of them (experts, rows, columns). Here each
keeps its own packing: `pieces` of an expert stand below each other, and equal parts of all experts lie in one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lowmem_layers.model.formats.packed import Packed

NAME = "joined"


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
        settings |= {f"{index}.format": model.format, f"{index}.rows": model.shape[0]}
        settings |= {f"{index}.set.{key}": value for key, value in model.settings.items()}
        parts |= {f"{index}.{part}": torch.stack([piece.parts[part] for piece in alike]) for part in model.parts}
    return Packed(NAME, shape, parts, settings)


def pieces(packed: Packed) -> Iterator[tuple[int, Packed]]:
    """List the packed matrices, each with the row at which it starts when all leading dimensions are taken together."""
    row = 0
    for expert in range(next(iter(packed.parts.values())).shape[0]):
        for index in range(int(packed.settings["pieces"])):
            piece = _piece(packed, expert, index)
            yield row, piece
            row += piece.shape[0]


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut whole experts out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
    height = packed.shape[-2]
    experts = slice(start // height, stop // height)
    if start % height or stop % height:
        raise ValueError(f"rows {start} to {stop} are not whole experts of {height} rows")
    parts = {name: part[experts] for name, part in packed.parts.items()}
    return Packed(NAME, (stop - start, packed.shape[-1]), parts, packed.settings)


def _piece(packed: Packed, expert: int, index: int) -> Packed:
    prefix = f"{index}."
    mark = f"{index}.set."
    settings = {key.removeprefix(mark): value for key, value in packed.settings.items() if key.startswith(mark)}
    parts = {name.removeprefix(prefix): part[expert] for name, part in packed.parts.items() if name.startswith(prefix)}
    shape = (int(packed.settings[f"{index}.rows"]), packed.shape[-1])
    return Packed(str(packed.settings[f"{index}.format"]), shape, parts, settings)


def _kind(packed: Packed) -> tuple[object, ...]:
    shapes = {name: (part.shape, part.dtype) for name, part in packed.parts.items()}
    return packed.format, packed.shape, dict(packed.settings), shapes
