"""Fill a model without weights from safetensors: the resident part at once, then one decoder layer at a time.

A packed weight's `CheckpointFormat` knows how to read it. This module knows which tensors belong together, where they
go, and what to do if one is missing, left over or damaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.packing import Packing
from lowmem_layers.model.checkpoint.safetensors_files import read_tensor, same_numbers
from lowmem_layers.model.checkpoint.safetensors_sorted import DAMAGED, SortedTensors
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import CHECKPOINT_FORMATS, CheckpointFormat, OwnPacking, Packed, stack, unpacked
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.store import Place
from lowmem_layers.model.memory import all_finite

RESIDENT = -1

_UNTIE = 'write "tie_word_embeddings": false into config.json if both are meant'


class LayerReader(Protocol):
    """Fill a model's small tensors in place and hand over its packed weights, layer by layer."""

    def bytes_at_home(self) -> dict[str, int]:
        """Count what each weight takes as the checkpoint packs it, by the model's names, from headers alone."""
        ...

    def read_resident(self) -> None:
        """Fill everything outside the decoder layers."""
        ...

    def read_layer(self, layer: int) -> dict[str, Packed]:
        """Fill one decoder layer's small tensors and return its streamed weights, packed, by key."""
        ...

    def notes(self) -> list[str]:
        """Say once what of the checkpoint was not used, and why that changes nothing."""
        ...


class SafetensorsReader:
    """Read a folder of safetensors through transformers' conversion.

    Raises:
        CheckpointError: the table of tensors is damaged, contradicts itself, or has layers that the config does not.
    """

    def __init__(
        self, folder: Path, model: Any, converter: Converter, places: Iterable[Place], packing: Packing,
        own: OwnPacking | None, dtype: torch.dtype, formats: Sequence[CheckpointFormat] = CHECKPOINT_FORMATS,
    ) -> None:  # fmt: skip
        self._folder, self._model, self._converter = folder, model, converter
        self._packing, self._own, self._dtype = packing, own, dtype
        self._places: dict[int, list[Place]] = defaultdict(list)
        for place in places:
            self._places[place.layer].append(place)
        self._streamed = {place.key: place.shape for group in self._places.values() for place in group}
        self._sorted = SortedTensors(folder, model, converter, 1 + max(self._places, default=-1), own, formats)
        self._plain, self._packed = self._sorted.plain, self._sorted.packed

    def notes(self) -> list[str]:
        """Say once what of the checkpoint was not used, and why that changes nothing."""
        return self._sorted.unused.lines()

    def bytes_at_home(self) -> dict[str, int]:
        """Count what each weight takes as the checkpoint packs it, by the model's names, from headers alone."""
        found: dict[str, int] = defaultdict(int)
        for name, entry in ((n, e) for group in self._plain.values() for n, e in group.items()):
            found[self._converter.target(name)[0]] += prod(entry.shape) * self._dtype.itemsize
        for name, entry in ((n, e) for group in self._packed.values() for n, e in group.items()):
            n_bytes = entry.format.home_bytes(name, entry.parts, self._settings_for(entry.format))
            found[self._converter.target(name)[0]] += n_bytes
        return dict(found)

    def read_resident(self) -> None:
        """Fill embedding, final norm and head, and tie what the model ties.

        Raises:
            CheckpointError: a tensor is damaged, missing, of the wrong shape, or not finite.
        """
        # 1) Some checkpoints have a second copy of a weight that the model ties to another. It is left out, unless it
        #    is a different one (transformers then does not tie them).
        tied: dict[str, str] = dict(getattr(self._model, "all_tied_weights_keys", None) or {})
        there = {self._converter.target(name)[0]: (name, e) for name, e in self._plain[RESIDENT].items()}
        for target, (name, entry) in there.items():
            if tied.get(target) not in there:
                continue
            first = there[tied[target]][1]
            if not same_numbers(entry, first):
                raise CheckpointError(
                    f"{entry.file.name}: {target} is not {first.name}, though config.json ties them", _UNTIE
                )
            del self._plain[RESIDENT][name]
        for name, entry in self._packed[RESIDENT].items():
            target = self._converter.target(name)[0]
            if tied.get(target) in there:
                raise CheckpointError(
                    f"{entry.file}: {target} is packed, but config.json ties it to {tied[target]}", _UNTIE
                )
        # 2) everything else is read, and must be all there
        self._fill(RESIDENT)
        self._model.tie_weights()
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if self._converter.layer_of(name) == RESIDENT:
                self._check(name, tensor)

    def read_layer(self, layer: int) -> dict[str, Packed]:
        """Fill one decoder layer's small tensors and return its streamed weights, packed, by key.

        Raises:
            CheckpointError: a tensor is damaged, missing, of the wrong shape, or not finite.
        """
        kept = self._fill(layer)
        packed: dict[str, Packed] = {}
        for place in self._places[layer]:
            if place.key in kept:
                packed[place.key] = kept[place.key]
                if packed[place.key].shape != place.shape:
                    raise CheckpointError(
                        f"{self._folder.name}: {place.key} unpacks to {packed[place.key].shape}, the config asks for"
                        f" {place.shape}",
                        "config.json and the weights belong to different models",
                    )
                continue
            weight = getattr(place.module, place.attribute)
            self._check(place.key, weight)
            packed[place.key] = self._packing.pack(weight.data, is_quantised=is_quantised(place))
            set_tensor(self._model, place.key, torch.empty(place.shape, dtype=weight.dtype, device="meta"))
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if self._converter.layer_of(name) == layer and name not in packed:
                self._check(name, tensor)
        return packed

    def _fill(self, layer: int) -> dict[str, Packed]:
        """Read a layer's tensors into the model; return those that keep their packing, by the model's names."""
        # 1) plain tensors
        dense = {name: read_tensor(entry) for name, entry in self._plain.pop(layer, {}).items()}
        # 2) packed weights: kept where the request keeps them, but what stays in the model is needed dense
        kept: dict[str, Packed] = {}
        pieces: dict[str, dict[tuple[int, int], Packed]] = defaultdict(dict)
        for name, entry in self._packed.pop(layer, {}).items():
            tensors = {part: read_tensor(stored) for part, stored in entry.parts.items()}
            for part in entry.format.scales:
                values = tensors.get(part)
                if values is None or not values.is_floating_point():
                    continue
                if not all_finite(values.float() if values.element_size() == 1 else values):
                    raise _not_finite(f"{name} ({part})", entry.parts[part].file.name)
            weight = entry.format.read(name, tensors, self._settings_for(entry.format), entry.file)
            target, is_converted = self._converter.target(name)
            if not self._packing.keep or target not in self._streamed:
                dense[name] = unpacked(weight, self._dtype)
                continue
            if not is_converted:
                kept[target] = weight
                continue
            joint = self._converter.joint(name)
            if joint is None:
                raise ModelError(
                    f"{name} is packed ({self._packing.target}), but the model cuts or turns it on loading",
                    "add --requantize: it is unpacked, converted and quantised again",
                )
            pieces[joint.target][joint.expert, joint.piece] = weight
        # 3) the matrices of experts, joined into the model's stacks
        kept |= {target: self._joined(target, grid) for target, grid in pieces.items()}
        # 4) all that is dense now goes where it belongs
        self._converter.fill(dense, self._folder.name)
        return kept

    def _settings_for(self, form: CheckpointFormat) -> Any:
        """Give a format the settings that it read from the config; None where the config names another format."""
        return self._own.settings if self._own is not None and self._own.format == form else None

    def _joined(self, target: str, pieces: Mapping[tuple[int, int], Packed]) -> Packed:
        """Join the packed matrices of one weight, in the order of experts and of pieces."""
        experts, per_expert = (1 + max(numbers) for numbers in zip(*pieces, strict=True))
        lost = [(e, p) for e in range(experts) for p in range(per_expert) if (e, p) not in pieces]
        if lost:
            raise CheckpointError(
                f"{self._folder}: {target} lacks part {lost[0][1]} of expert {lost[0][0]}",
                "the checkpoint is incomplete",
            )
        grid = [[pieces[e, p] for p in range(per_expert)] for e in range(experts)]  # (experts, pieces)
        try:
            return stack(grid, self._streamed[target])
        except ValueError as error:
            raise CheckpointError(
                f"{self._folder}: {target} cannot be put together: {error}",
                "config.json and the weights belong to different models, or --requantize joins them unpacked",
            ) from error

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        """Refuse a tensor of the model that the checkpoint lacks, or that holds NaN or infinite numbers."""
        if tensor.is_meta:
            raise CheckpointError(
                f"{self._folder} lacks the tensor {name}", "the checkpoint is incomplete; download or save it again"
            )
        if tensor.is_floating_point() and not all_finite(tensor):
            raise _not_finite(name, self._sorted.files.get(name, self._folder.name))


def _not_finite(name: str, file: str) -> CheckpointError:
    return CheckpointError(f"{file}: {name} holds NaN or infinite numbers", DAMAGED)
