"""The forms in which a model without some sublayers is written: one object each.

A form says whether it can take whole decoder layers only, prepares what it needs (and refuses what it cannot do), and
turns each decoder layer's tensors into those of the new checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lowmem_layers.acting import nemotron
from lowmem_layers.acting.cutting import cut_model
from lowmem_layers.acting.writing import config_document
from lowmem_layers.acting.zeroing import probe_calls, zero_branches
from lowmem_layers.errors import RemovalError, UsageError
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.devices import dtype_name
from lowmem_layers.model.load import Inspection

Tensors = Mapping[str, torch.Tensor]


class Written(Protocol):
    """One checkpoint on its way: its config, and its tensors layer by layer, under the new model's names.

    `module` is the model (its weights on the meta device) whose names these are; `notes` are said to the user.
    """

    module: Any
    config: dict[str, Any]
    notes: tuple[str, ...]

    def layer(self, number: int, tensors: Tensors) -> Tensors:
        """Turn the tensors of a visited decoder layer into those of the new checkpoint."""
        ...


class Form(Protocol):
    """One way to write a smaller model."""

    @property
    def name(self) -> str: ...
    @property
    def whole_layers(self) -> bool: ...
    def prepare(self, found: Inspection, model: DecoderModel, removed: Removed) -> Written:
        """Look at the model, and refuse what cannot be written in this form."""
        ...


@dataclass(frozen=True)
class Zeroed:
    """The same model with the removed branches' last matrices zeroed: exact everywhere, no smaller and no faster."""

    name: str = "zeroed"
    whole_layers: bool = False

    def prepare(self, found: Inspection, model: DecoderModel, removed: Removed) -> Written:
        """Examine the layers: what is zeroed must be seen to be silent."""
        model.examine()
        roles: dict[int, list[str]] = {}
        for position in removed:
            player = model.players[position]
            roles.setdefault(player.layer, []).append(player.role)
        return _Zeroing(model, roles)


class _Zeroing:
    notes: tuple[str, ...] = ("no weight is gone: the folder is as large and the model as slow as before",)

    def __init__(self, model: DecoderModel, roles: Mapping[int, list[str]]) -> None:
        self.module, self._model, self._roles = model.module, model, roles
        self._calls = probe_calls(model)
        self.config = config_document(model.module.config, type(model.module).__name__, dtype_name(model.dtype))

    def layer(self, number: int, tensors: Tensors) -> Tensors:
        """Zero in place: the tensors are the layer's own."""
        if number in self._roles:
            anatomy = self._model.programs[number].anatomy
            zero_branches(anatomy, self._roles[number], self._calls[number], self._model.shape.hidden)
        return tensors


@dataclass(frozen=True)
class Layers:
    """The same family with fewer decoder layers: loads wherever the family does, smaller and faster."""

    name: str = "layers"
    whole_layers: bool = True

    def prepare(self, found: Inspection, model: DecoderModel, removed: Removed) -> Written:
        """Build the smaller model, each layer of which must be built as it was."""
        kept, kinds = kept_layers(model, removed, self.name), {player.kind for player in model.players}
        left = {player.kind for player in model.players if player.layer in kept}
        if {"attn", "mixer"} <= kinds and "attn" not in left:
            raise RemovalError(
                f"{type(model.module).__name__}: no attention would stay, and transformers' cache needs one",
                "keep a decoder layer with attention, or use --form zeroed",
            )
        return _Cutting(found, model, kept)


class _Cutting:
    notes: tuple[str, ...] = ()

    def __init__(self, found: Inspection, model: DecoderModel, kept: list[int]) -> None:
        self._prefix = found.prefix
        self._place = {layer: position for position, layer in enumerate(kept)}
        self.module = cut_model(model.module, kept, model.dtype)
        self.config = config_document(self.module.config, type(model.module).__name__, dtype_name(model.dtype))

    def layer(self, number: int, tensors: Tensors) -> Tensors:
        """Give a kept layer its new number; a removed one has no tensors."""
        if number not in self._place:
            return {}
        old, new = f"{self._prefix}.{number}.", f"{self._prefix}.{self._place[number]}."
        return {new + name.removeprefix(old): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Nemotron:
    """NVIDIA's Nemotron-NAS form of Llama-like models: removed sublayers are `no_op`, and have no weights."""

    name: str = "nemotron"
    whole_layers: bool = False

    def prepare(self, found: Inspection, model: DecoderModel, removed: Removed) -> Written:
        """See that the model is a Llama whose widths this form can say."""
        gone = {(model.players[position].layer, model.players[position].role) for position in removed}
        return _NoOps(model, gone)


class _NoOps:
    def __init__(self, model: DecoderModel, gone: set[tuple[int, Any]]) -> None:
        self.module, self._gone = model.module, gone
        base = config_document(model.module.config, "DeciLMForCausalLM", dtype_name(model.dtype))
        self.config = nemotron.config_of(model.module, base, gone)
        self.notes = nemotron.notes(gone, model.config.num_hidden_layers)

    def layer(self, number: int, tensors: Tensors) -> Tensors:
        """Leave out a removed branch's matrices and the norm in front of it."""
        left_out = tuple(part for layer, role in self._gone if layer == number for part in nemotron.PARTS[role])
        return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in left_out)}


def kept_layers(model: DecoderModel, removed: Removed, form: str) -> list[int]:
    """List the decoder layers that stay, once it is seen that those that go do nothing but add their sublayers.

    Raises:
        UsageError: a decoder layer goes in part, or none stays.
        RemovalError: a layer that goes would still do something without its sublayers, as was measured.
    """
    by_layer: dict[int, set[int]] = {}
    for position, player in enumerate(model.players):
        by_layer.setdefault(player.layer, set()).add(position)
    gone = set(removed)
    for layer, members in by_layer.items():
        if members & gone and not members <= gone:
            left = ", ".join(model.players[position].name for position in sorted(members - gone))
            raise UsageError(
                f"--form {form} removes whole decoder layers, and of layer {layer} {left} would stay",
                "use --form zeroed, or --decoder-layers K",
            )
    kept = [layer for layer in range(model.n_layers) if not by_layer.get(layer, {-1}) <= gone]
    if not kept:
        raise UsageError("no decoder layer would stay", "remove fewer")
    staying = {program.stays for layer, program in enumerate(model.examine()) if layer not in kept} - {""}
    if staying:
        raise RemovalError(
            f"{type(model.module).__name__}: {'; '.join(sorted(staying))}, and a layer that is cut out does not",
            "what was measured is the layer without its sublayers: --form zeroed writes that",
        )
    return kept
