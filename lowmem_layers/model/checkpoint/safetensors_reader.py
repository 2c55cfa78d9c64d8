"""Fill a model without weights from safetensors: the resident part at once, then one decoder layer at a time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.checkpoint.conversion import Converter, Joint
from lowmem_layers.model.checkpoint.packing import OwnPacking, Recipe
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_table, read_tensor, same_numbers
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import Packed, four_bit, gptq, int8, joined, unpack
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.store import Place
from lowmem_layers.model.memory import all_finite

RESIDENT = -1

# name of the weight, and the part of it: X.weight.absmax, X.SCB, X.qweight …
_PARTS = re.compile(
    r"(?P<stem>.+)\.(?:weight\.(?P<four>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"
    r"|(?P<eight>SCB|weight_format)|(?P<gptq>qweight|qzeros|scales|g_idx))"
)


_SAVED_WITH = "config.json should have the quantization_config that the checkpoint was saved with"


class LayerReader(Protocol):
    """Fill a model's small tensors in place and hand over its packed weights, part by part."""

    def bytes_at_home(self) -> dict[str, int]:
        """Count what each weight takes as the checkpoint packs it, by the model's names, from headers alone."""
        ...

    def read_resident(self) -> None:
        """Fill everything outside the decoder layers."""
        ...

    def read_layer(self, layer: int) -> dict[str, Packed]:
        """Fill one decoder layer's small tensors and return its streamed weights, packed, by key."""
        ...


class SafetensorsReader:
    """Read a folder of safetensors through transformers' conversion."""

    def __init__(
        self, folder: Path, model: Any, converter: Converter, places: Iterable[Place], recipe: Recipe,
        own: OwnPacking | None, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._model = model
        self._converter = converter
        self._recipe = recipe
        self._own = own
        self._dtype = dtype
        self._places: dict[int, list[Place]] = defaultdict(list)
        for place in places:
            self._places[place.layer].append(place)
        self._plain: dict[int, list[TensorEntry]] = defaultdict(list)
        self._packed: dict[int, dict[str, dict[str, TensorEntry]]] = defaultdict(lambda: defaultdict(dict))
        self._files: dict[str, str] = {}
        for name, entry in read_table(folder).items():
            self._sort_in(name, entry)
        self._refuse_layers_beyond()

    def _sort_in(self, name: str, entry: TensorEntry) -> None:
        match = _PARTS.fullmatch(name) if self._own is not None else None
        if match is not None:
            weight = self._converter.familiar(f"{match['stem']}.weight")
            part = match["four"] or match["eight"] or match["gptq"]
            self._packed[self._converter.layer_of(self._converter.target(weight)[0])][weight][part] = entry
            return
        if self._own is None and name.endswith(".qweight"):
            raise CheckpointError(f"{entry.file.name}: {name} is packed, but config.json does not say how", _SAVED_WITH)
        target = self._converter.target(self._converter.familiar(name))[0]
        self._files[target] = entry.file.name
        self._plain[self._converter.layer_of(target)].append(entry)

    def _refuse_layers_beyond(self) -> None:
        """Refuse a checkpoint that has decoder layers which its config knows nothing of."""
        n_layers = 1 + max(self._places, default=-1)
        for layer in sorted({*self._plain, *self._packed}):
            names = [entry.name for entry in self._plain.get(layer, [])] + list(self._packed.get(layer, {}))
            beyond = [name for name in names if layer >= n_layers and not self._converter.ignores(name)]
            if beyond:
                raise CheckpointError(
                    f"{self._folder} has the tensor {beyond[0]}, but config.json says {n_layers} decoder layers",
                    "config.json and the weights belong to different models",
                )

    def bytes_at_home(self) -> dict[str, int]:
        """Count what each weight takes as the checkpoint packs it, by the model's names, from headers alone."""
        found: dict[str, int] = defaultdict(int)
        parts_of = {name: parts for group in self._packed.values() for name, parts in group.items()}
        for entry in (entry for group in self._plain.values() for entry in group):
            name = self._converter.familiar(entry.name)
            as_it_is = name in parts_of
            n_bytes = entry.n_bytes if as_it_is else prod(entry.shape) * self._dtype.itemsize
            found[self._converter.target(name)[0]] += n_bytes
        for name, parts in parts_of.items():
            kept = [part for part in parts if part not in ("qzeros", "weight_format") and "quant_state" not in part]
            n_bytes = sum(parts[part].n_bytes for part in kept)
            if "qzeros" in parts and "scales" in parts:
                n_bytes += prod(parts["scales"].shape)  # zero points are kept as bytes
            found[self._converter.target(name)[0]] += n_bytes
        return dict(found)

    def read_resident(self) -> None:
        """Fill embedding, final norm and head, and tie what the model ties.

        Raises:
            CheckpointError: a tensor is damaged, missing, of the wrong shape, or not finite.
        """
        self._leave_out_tied()
        self._fill(RESIDENT, {})
        self._model.tie_weights()
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if self._converter.layer_of(name) == RESIDENT:
                self._check(name, tensor)

    def read_layer(self, layer: int) -> dict[str, Packed]:
        """Fill one decoder layer's small tensors and return its streamed weights, packed, by key.

        Raises:
            CheckpointError: a tensor is damaged, missing, of the wrong shape, or not finite.
        """
        kept: dict[str, Packed] = {}
        self._fill(layer, kept)
        packed: dict[str, Packed] = {}
        for place in self._places[layer]:
            if place.key in kept:
                packed[place.key] = self._checked_shape(place, kept[place.key])
                continue
            weight = getattr(place.module, place.attribute)
            self._check(place.key, weight)
            packed[place.key] = self._recipe.pack(weight.data, is_quantised=is_quantised(place))
            set_tensor(self._model, place.key, torch.empty(place.shape, dtype=weight.dtype, device="meta"))
        self._check_small(layer, packed)
        return packed

    def _leave_out_tied(self) -> None:
        """Drop the second copy that some checkpoints have of a weight which the model ties to another.

        Raises:
            CheckpointError: the two are different (transformers then does not tie them).
        """
        tied: dict[str, str] = dict(getattr(self._model, "all_tied_weights_keys", None) or {})
        there = {self._converter.target(self._converter.familiar(e.name))[0]: e for e in self._plain[RESIDENT]}
        second = {name: there[tied[name]] for name in there if tied.get(name) in there}
        for name, first in second.items():
            if not same_numbers(there[name], first):
                raise CheckpointError(
                    f"{there[name].file.name}: {name} is not {first.name}, though config.json ties them",
                    'write "tie_word_embeddings": false into config.json if both are meant',
                )
        dropped = [there[name] for name in second]
        self._plain[RESIDENT] = [entry for entry in self._plain[RESIDENT] if entry not in dropped]

    def _fill(self, layer: int, kept: dict[str, Packed]) -> None:
        """Read a layer's tensors; those the recipe keeps packed go into `kept`, all others into the model."""
        packed_entries = self._packed.pop(layer, {})
        dense: dict[str, torch.Tensor] = {}
        for entry in self._plain.pop(layer, []):
            name = self._converter.familiar(entry.name)
            if name in packed_entries:
                packed_entries[name]["weight"] = entry
            else:
                dense[name] = read_tensor(entry)
        parts: dict[str, dict[tuple[int, int], Packed]] = defaultdict(dict)
        for name, entries in packed_entries.items():
            weight = self._read_packed(name, entries)
            if not self._recipe.keep or layer == RESIDENT:
                dense[name] = _dense(weight, self._dtype)
                continue
            target, is_converted = self._converter.target(name)
            if is_converted:
                joint = self._joint(name)
                parts[joint.target][joint.expert, joint.piece] = weight
            else:
                kept[target] = weight
        kept |= {target: self._joined(target, pieces) for target, pieces in parts.items()}
        self._converter.fill(dense, self._folder.name)

    def _joint(self, name: str) -> Joint:
        joint = self._converter.joint(name)
        if joint is None:
            raise ModelError(
                f"{name} is packed ({self._recipe.target}), but the model cuts or turns it on loading",
                "add --requantize: it is unpacked, converted and quantised again",
            )
        return joint

    def _joined(self, target: str, pieces: Mapping[tuple[int, int], Packed]) -> Packed:
        """Join the packed matrices of one weight, in the order of experts and of pieces."""
        experts, per_expert = (1 + max(numbers) for numbers in zip(*pieces, strict=True))
        lost = [(e, p) for e in range(experts) for p in range(per_expert) if (e, p) not in pieces]
        if lost:
            raise CheckpointError(
                f"{self._folder}: {target} lacks part {lost[0][1]} of expert {lost[0][0]}",
                "the checkpoint is incomplete",
            )
        shape = next((p.shape for group in self._places.values() for p in group if p.key == target), ())
        grid = [[pieces[e, p] for p in range(per_expert)] for e in range(experts)]
        try:
            return joined.stack(grid, shape)
        except ValueError as error:
            raise CheckpointError(
                f"{self._folder}: {target} cannot be put together: {error}",
                "config.json and the weights belong to different models, or --requantize joins them unpacked",
            ) from error

    def _read_packed(self, name: str, entries: Mapping[str, TensorEntry]) -> Packed:
        parts = {part: read_tensor(entry) for part, entry in entries.items()}
        for part in ("absmax", "nested_absmax", "SCB", "scales"):
            if part in parts and parts[part].is_floating_point() and not all_finite(parts[part]):
                raise _not_finite(f"{name} ({part})", entries[part].file.name)
        file, stem = next(iter(entries.values())).file.name, name.removesuffix(".weight")
        if "qweight" in parts:
            if self._own is None or self._own.gptq is None:
                raise CheckpointError(f"{name} is packed by GPTQ, but config.json does not say so", _SAVED_WITH)
            return gptq.pack(f"{file}: {stem}", parts, self._own.gptq.of(stem))
        if "SCB" in parts and "weight" in parts:
            return int8.from_bitsandbytes(parts["weight"], parts["SCB"])
        return four_bit.from_bitsandbytes(f"{file}: {name}", parts)

    def _checked_shape(self, place: Place, packed: Packed) -> Packed:
        if packed.shape != place.shape:
            raise CheckpointError(
                f"{self._folder.name}: {place.key} unpacks to {packed.shape}, the config asks for {place.shape}",
                "config.json and the weights belong to different models",
            )
        return packed

    def _check_small(self, layer: int, packed: Mapping[str, Packed]) -> None:
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if self._converter.layer_of(name) == layer and name not in packed:
                self._check(name, tensor)

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            raise CheckpointError(
                f"{self._folder} lacks the tensor {name}", "the checkpoint is incomplete; download or save it again"
            )
        if tensor.is_floating_point() and not all_finite(tensor):
            raise _not_finite(name, self._files.get(name, self._folder.name))


def _not_finite(name: str, file: str) -> CheckpointError:
    return CheckpointError(f"{file}: {name} holds NaN or infinite numbers", "the checkpoint is damaged")


def _dense(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(packed.shape, dtype=dtype)
    unpack(packed, out)
    return out
