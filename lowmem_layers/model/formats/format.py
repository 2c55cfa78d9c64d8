"""A weight format, and a weight packed in it.

A format is one frozen object that owns all that is particular to it: how its tensors are called in a checkpoint, which
config names it, how many bytes it takes, how it is read, packed and unpacked. An object plays one role or several:
`WeightFormat` is a form that weights are kept in, `PackingFormat` one that dense weights can be packed into,
`CheckpointFormat` one in which safetensors checkpoints come: it reads them into a weight format, its own or another.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch

# Unpacking takes up to twenty bytes a number beside its result, so it goes piece by piece. Smaller pieces would not be
# better: on a busy machine every step of a piece may wait for its threads.
PIECE_NUMBERS = {"cpu": 1 << 21}
_PIECE_NUMBERS_ELSEWHERE = 1 << 23

SAVED_WITH = "config.json should have the quantization_config that the checkpoint was saved with"


class WeightFormat(Protocol):
    """Cut a packed weight into rows, and write it as a dense one."""

    @property
    def name(self) -> str:
        """Name the format, as tables of packed files do."""
        ...

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out. Shapes: of all leading dimensions taken together, `start` to `stop`."""
        ...

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Write the dense weight into `out`, in `out`'s dtype and on its device.

        Shapes: `out` has `packed.shape` and is contiguous; the packed parts lie on its device.
        """
        ...


class PackingFormat(WeightFormat, Protocol):
    """Pack dense weights."""

    def packed_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Count what a dense weight of `shape` in `dtype` takes once it is packed."""
        ...

    def pack(self, weight: torch.Tensor) -> Packed:
        """Pack a dense weight."""
        ...


class CheckpointFormat(Protocol):
    """Read weights that lie packed in a safetensors checkpoint, each into a weight format."""

    @property
    def title(self) -> str:
        """Name the format for people."""
        ...

    @property
    def parts(self) -> tuple[str, ...]:
        """List how the names of a weight's tensors end: `qweight`, `weight.absmax`; the packed numbers come first.

        `_*_qdata` is the part `qdata` of a weight `m.weight` whose tensors are called `m._weight_qdata`. Below, and in
        messages, a part is called by its ending without `weight.`.
        """
        ...

    @property
    def scales(self) -> tuple[str, ...]:
        """List the parts that hold floating-point numbers, all of which are finite if the checkpoint is sound."""
        ...

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a `quantization_config` that names this format; None for any other.

        `about["quant_method"]` is in lower case.

        Raises:
            CheckpointError: the config's numbers make no sense.
        """
        ...

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count what a weight of the checkpoint will take at home, from the headers of its parts.

        `settings` is what `from_config` made of the config; None where the config names another format.
        """
        ...

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over the weight `name` from its parts. `file` is what messages call the checkpoint's file.

        Raises:
            CheckpointError: a part is missing, or contradicts the settings or another part.
        """
        ...


class Stored(Protocol):
    """A tensor of a checkpoint, by its header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the shape of the stored tensor."""
        ...

    @property
    def n_bytes(self) -> int:
        """Count the stored bytes."""
        ...


@dataclass(frozen=True)
class OwnPacking:
    """The packing that a checkpoint comes in.

    `bits` is its width, `label` names it for people, `settings` is what the format needs from the config to read it.
    `runs_quantised` says that its makers quantise activations too while the model runs, which is not done here.
    """

    format: WeightFormat | CheckpointFormat
    bits: int
    label: str
    settings: Any = None
    runs_quantised: bool = False


@dataclass(frozen=True)
class Packed:
    """Hold one weight in its packed form.

    `shape` is the dense weight's, `parts` are the stored tensors and `settings` the few numbers and names that are not
    tensors (they survive a trip through JSON).
    """

    format: WeightFormat
    shape: tuple[int, ...]
    parts: Mapping[str, torch.Tensor]
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Add up the bytes of the stored tensors."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    def with_parts(self, parts: Mapping[str, torch.Tensor]) -> Packed:
        """Return the same packed weight over other storage: a copy on another device, a view of a file."""
        return Packed(self.format, self.shape, parts, self.settings)


def part_of(
    name: str, names: Container[str], formats: Iterable[CheckpointFormat], own: object = None
) -> tuple[CheckpointFormat, str, str] | None:
    """Tell whose part a tensor of a checkpoint is: the format, the name of the weight, and the part's.

    `names` are all of the checkpoint's. The format that the config names (`own`) is asked first. Another one must have
    its first part that is not called `weight` there as well, since endings such as `scale` mean something else in plain
    models. An ending that begins with `_` is appended to a weight's own name, one that begins with `_*` too, with `_`
    before the last word of that name; any other takes the place of `weight`. A tensor called `weight` is never found:
    only the other tensors of its module tell whether it is plain or packed.
    """
    for each in sorted(formats, key=lambda each: each != own):
        parts = [part for part in each.parts if part != "weight"]
        endings = [part.removeprefix("_*") if part[0] == "_" else f".{part}" for part in parts]
        for part, ending in zip(parts, endings, strict=True):
            stem = name.removesuffix(ending)
            if stem in (name, "") or (each != own and f"{stem}{endings[0]}" not in names):
                continue
            module, marked, leaf = stem.rpartition("._")
            if part[:2] != "_*":
                weight = stem if part[0] == "_" else f"{stem}.weight"
            elif marked:
                weight = f"{module}.{leaf}"
            else:
                continue
            return each, weight, ending[1:].removeprefix("weight.")
    return None


def row_pieces(packed: Packed, out: torch.Tensor) -> Iterator[tuple[Packed, torch.Tensor]]:
    """Cut a packed weight into pieces of whole rows, each with its place in `out`.

    Whoever loops over them should hold nothing of one piece while unpacking the next: what is computed is many times a
    packed piece's size.

    Shapes: `out` has `packed.shape`; its pieces are (rows, columns), with all leading dimensions taken together.
    """
    width, n_rows = packed.shape[-1], prod(packed.shape[:-1])
    flat = out.view(n_rows, width)  # (rows, columns)
    step = max(1, PIECE_NUMBERS.get(out.device.type, _PIECE_NUMBERS_ELSEWHERE) // width)
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        yield packed.format.rows(packed, start, stop), flat[start:stop]
