"""A safetensors checkpoint's tensors by decoder layer and weight: plain ones, and parts of packed ones.

Every tensor ends in its place, is left out for a reason that is known, or is refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_table
from lowmem_layers.model.checkpoint.safetensors_unused import Unused, refuse_codes
from lowmem_layers.model.formats import CheckpointFormat, OwnPacking
from lowmem_layers.model.formats.format import SAVED_WITH, part_of

DAMAGED = "the checkpoint is damaged"


@dataclass(frozen=True)
class PackedEntry:
    """One packed weight of a checkpoint: its format, and where its parts lie."""

    format: CheckpointFormat
    parts: dict[str, TensorEntry]

    @property
    def file(self) -> str:
        """Name the file that messages about this weight name."""
        return next(iter(self.parts.values())).file.name


class SortedTensors:
    """The tensors by decoder layer (-1 for those outside), then by the name of the weight.

    `files` names the file of a plain tensor, by the model's name for it; `unused` what was left out.

    Raises:
        CheckpointError: the table of tensors is damaged, contradicts itself or the config, or has a tensor that the
            model has no place for.
    """

    def __init__(
        self, folder: Path, model: Any, converter: Converter, n_layers: int, own: OwnPacking | None,
        formats: Sequence[CheckpointFormat],
    ) -> None:  # fmt: skip
        self._folder, self._converter, self._n_layers, self._is_packed = folder, converter, n_layers, own is not None
        self.plain: dict[int, dict[str, TensorEntry]] = defaultdict(dict)
        self.packed: dict[int, dict[str, PackedEntry]] = defaultdict(dict)
        self.files: dict[str, str] = {}
        self.unused = Unused(model, converter.ignores)
        table = read_table(folder)
        for name, entry in table.items():
            self._sort_in(name, entry, part_of(name, table, formats, own.format if own else None))
        if own is not None and not self.packed:
            raise CheckpointError(
                f"config.json says that {folder.name} is packed ({own.label}), but no weight is",
                "take quantization_config out of config.json if these are the plain weights",
            )
        self._refuse_contradictions()
        self._account()

    def _sort_in(self, name: str, entry: TensorEntry, found: tuple[CheckpointFormat, str, str] | None) -> None:
        """Sort one tensor in: as a part of a packed weight, if one was found, or as a plain one."""
        if found is not None:
            form, weight, part = found
            if not self._is_packed and part in form.scales:
                return  # the message names the codes, which are there too
            if not self._is_packed:
                raise CheckpointError(
                    f"{entry.file.name}: {name} is packed, but config.json does not say how", SAVED_WITH
                )
            weight = self._converter.familiar(weight)
            layer = self._converter.layer_of(self._converter.target(weight)[0])
            packed = self.packed[layer].setdefault(weight, PackedEntry(form, {}))
            if packed.format != form:
                raise CheckpointError(
                    f"{entry.file.name}: {weight} is packed as {packed.format.title} and as {form.title}", DAMAGED
                )
            packed.parts[part] = entry
            return
        weight = self._converter.familiar(name)
        target = self._converter.target(weight)[0]
        same = self.plain[self._converter.layer_of(target)].setdefault(weight, entry)
        if same is not entry:
            raise CheckpointError(f"{entry.file.name}: {name} is there twice, also as {same.name}", DAMAGED)
        self.files[target] = entry.file.name

    def _refuse_contradictions(self) -> None:
        """Give packed weights their tensor `weight`; refuse what is there twice, or in layers beyond the config's."""
        for layer, entries in self.packed.items():
            for name in entries.keys() & self.plain[layer].keys():
                entry = self.plain[layer].pop(name)
                if "weight" not in entries[name].format.parts:
                    raise CheckpointError(
                        f"{entry.file.name}: {name} is there twice, plain and packed as {entries[name].format.title}",
                        DAMAGED,
                    )
                entries[name].parts["weight"] = entry
        for layer in sorted({*self.plain, *self.packed}):
            names = [*(entry.name for entry in self.plain[layer].values()), *self.packed[layer]]
            beyond = [name for name in names if layer >= self._n_layers and not self._converter.ignores(name)]
            if beyond:
                raise CheckpointError(
                    f"{self._folder} has the tensor {beyond[0]}, but config.json says {self._n_layers} decoder layers",
                    "config.json and the weights belong to different models",
                )

    def _account(self) -> None:
        """Leave out what is known to be harmless; refuse whatever else the model has no place for.

        Raises:
            CheckpointError: there is such a tensor, or one that holds codes without scales.
        """
        for entries in self.plain.values():
            for name, entry in list(entries.items()):
                target = self._converter.target(name)[0]
                if not self._converter.has_place(target):
                    self.unused.leave_out(name, entry)
                    del entries[name]
                elif self._converter.is_float(target):
                    refuse_codes(name, entry)
        for entries in self.packed.values():
            for name, packed in list(entries.items()):
                if not self._converter.has_place(self._converter.target(name)[0]):
                    self.unused.leave_out(name, next(iter(packed.parts.values())))
                    del entries[name]
