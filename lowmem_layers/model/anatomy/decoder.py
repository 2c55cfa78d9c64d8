"""A causal language model whose decoder layers can be visited one at a time and driven sublayer by sublayer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import EngineError
from lowmem_layers.game.players.player import Player
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect, text_config
from lowmem_layers.model.anatomy.layer_examination import LayerProgram, examine_layers
from lowmem_layers.model.anatomy.removal import refusing, without
from lowmem_layers.model.homes.store import LayerStore, ResidentStore, Visit
from lowmem_layers.model.shape import ModelShape, shape_of_module


def longest_input(config: Any, tokenizer: Any) -> int:
    """Count the tokens that a model can take at once, by the rule of lm-evaluation-harness.

    The first of these config fields that is set, else the tokenizer's own limit, else 2,048.
    """
    for name in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and 0 < limit < 10**9 else 2048


class DecoderModel:
    """transformers' own modules, the store that brings their weights in, and what was found out about them.

    Everything but the decoder layers' weights (embedding, final norm, head, rotary buffers) is always in place. How
    the layers are driven (`programs`, `anatomy`) is known once `examine` was called.

    `shape` is what was known before loading; left out, it is taken from the module, whose weights must then be there.
    `packed_file` is the file of the cache that holds the packed weights, where one does.

    Raises:
        RemovalError: the model cannot be taken apart into attention and feed-forward sublayers.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any = None,
        store: LayerStore | None = None,
        description: Mapping[str, Any] | None = None,
        shape: ModelShape | None = None,
        packed_file: Path | None = None,
    ) -> None:
        self.module: Any = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.store: LayerStore = store or ResidentStore()
        self.packed_file = packed_file
        self._found = dissect(module)
        self._examined: tuple[tuple[LayerProgram, ...], Anatomy] | None = None
        self._description = dict(description or {})
        if shape is None and not all(weight.numel() for weight in module.parameters()):
            raise ValueError("the weights are at home already: give the shape that the model had before")
        self.shape = shape or shape_of_module(module, self._found)

    @property
    def players(self) -> tuple[Player, ...]:
        """List the sublayers in execution order."""
        return self._found.players

    @property
    def n_layers(self) -> int:
        """Count the decoder layers, with those that text passes by."""
        return len(self._found.layers)

    @property
    def device(self) -> torch.device:
        """Name the device that computes."""
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Name the type of the hidden states."""
        return self.module.get_input_embeddings().weight.dtype

    @property
    def config(self) -> Any:
        """Return the language model's config."""
        return text_config(self.module)

    @property
    def max_length(self) -> int:
        """Count the tokens that the model can take at once."""
        return longest_input(self.config, self.tokenizer)

    def examine(self) -> tuple[LayerProgram, ...]:
        """Visit every layer once and find out how it is driven. A second call gives what the first one found.

        Whether sublayers act in parallel is settled here: the shape says from now on what was seen.

        Raises:
            RemovalError: a layer does more than adding its sublayers' outputs to the residual stream.
        """
        if self._examined is None:
            with torch.inference_mode(), refusing(self.module, "while its layers were examined"):
                programs = examine_layers(self.module, self._found, self.store)
            anatomy = replace(self._found, layers=tuple(program.anatomy for program in programs))
            self._examined = programs, anatomy
            self.shape = replace(self.shape, parallel=any(program.parallel for program in programs))
        return self._examined[0]

    @property
    def programs(self) -> tuple[LayerProgram, ...]:
        """Say how each layer is driven.

        Raises:
            EngineError: the model was not examined.
        """
        return self._known()[0]

    @property
    def anatomy(self) -> Anatomy:
        """The model taken apart, with the forms in which its layers hand back their output.

        Raises:
            EngineError: the model was not examined.
        """
        return self._known()[1]

    def _known(self) -> tuple[tuple[LayerProgram, ...], Anatomy]:
        if self._examined is None:
            raise EngineError(
                "the model was not examined: how its layers are driven is unknown", "call examine() first"
            )
        return self._examined

    @contextmanager
    def removed(self, positions: tuple[int, ...]) -> Iterator[None]:
        """Remove sublayers in place for the length of a `with` block, for the model's own forward."""
        with without(self.anatomy, positions):
            yield

    @contextmanager
    def streaming(self, removed: tuple[int, ...] = ()) -> Iterator[None]:
        """Bring each layer's weights in as the model's own forward reaches it, for one pass in a `with` block.

        Those of `removed` sublayers are not brought in.
        """
        gone = {(self.players[position].layer, self.players[position].role) for position in removed}
        layers = {index: layer for index, layer in enumerate(self._found.layers) if layer.kinds}  # that text meets
        kept = [
            Visit(index, frozenset(role for role in layer.roles if (index, role) not in gone))
            for index, layer in layers.items()
        ]
        visits = self.store.sweep(kept)
        handles = [
            layer.layer.register_forward_pre_hook(lambda _m, _i: next(visits) and None) for layer in layers.values()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for _ in visits:  # lets the store release the last layer
                pass

    def describe(self) -> dict[str, Any]:
        """Say what was loaded and how, for the run's record."""
        return {**self._description, "players": len(self.players), "parallel_sublayers": self.shape.parallel}
