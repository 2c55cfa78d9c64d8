"""A model's shape: what its modules say, without their weights, about sublayers, work and memory.

Whoever needs a size takes it from here: the plan, the check before loading, and the engine. Shapes of three models
that are too large to have at hand are shipped, so that a run on them can be planned anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import resources
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.game.players.player import Player
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect, text_config
from lowmem_layers.model.anatomy.layer_examination import foresee_parallel
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.homes.places import Place, streamed_places
from lowmem_layers.model.placement import ModelBytes
from lowmem_layers.model.sizes import measure, packed_bytes

SHIPPED = ("llama-3-8b", "llama-3-70b", "mixtral-8x7b")


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model's sublayers and sizes before a weight is read.

    `parallel`: attention and feed-forward of a layer act side by side, or it cannot be told whether they do. The
    examination of the loaded layers settles it.

    Shapes: `players` and `macs` have N entries.
    Units: `macs` are multiply-adds a token of a sublayer's matrix products (a token visits `num_experts_per_tok`
        experts; attention over the context is left out); `widest` counts a token's numbers where they are most, in
        all the experts it visits; `itemsize` is bytes a number of the hidden states; `n_streamed` counts the numbers
        of all weights that are brought in for a visit; `score_bytes` is what attention keeps for a pair of tokens of a
        row, in all heads, where it is computed step by step (transformers' eager attention; else 0).
    """

    players: tuple[Player, ...]
    macs: tuple[int, ...]
    hidden: int
    widest: int
    vocabulary: int
    itemsize: int
    parallel: bool
    n_parameters: int
    n_streamed: int
    n_bytes: ModelBytes
    score_bytes: int = 0

    def states_at_once(self, chunk_tokens: int, n_rows: int, n_tokens: int) -> int:
        """Say how many states of some rows make a chunk of about `chunk_tokens`, at least one.

        Fewer, where eager attention's scores would take more than a feed-forward's intermediates do.
        """
        size = chunk_tokens // (n_rows * n_tokens)
        if self.score_bytes:
            size = min(
                size, 4 * chunk_tokens * self.widest * self.itemsize // (self.score_bytes * n_rows * n_tokens**2)
            )
        return max(1, size)

    def with_rounding(self, bits: float) -> ModelShape:
        """Count a second slot for each kind of sublayer, for rounded weights beside a visited layer's own, and a shelf.

        The shelf keeps all of them packed. Units: `bits` a weight; half a bit more is left for scales of whole rows.
        """
        n_bytes, single = self.n_bytes, self.n_bytes.expert_slots
        doubled = replace(n_bytes, slots=2 * n_bytes.slots, expert_slots=None if single is None else 2 * single)
        return replace(self, n_bytes=replace(doubled, shelf=int(self.n_streamed * (bits + 0.5)) // 8))


def shipped_config(name: str) -> Any:
    """Read the config of a shipped shape.

    Raises:
        ModelError: there is no shape of that name.
    """
    from transformers import AutoConfig

    if name not in SHIPPED:
        raise ModelError(f"there is no shipped shape {name!r}", f"shipped are {', '.join(SHIPPED)}")
    text = resources.files("lowmem_layers.model").joinpath("shapes", f"{name}.json").read_text()
    return AutoConfig.for_model(**json.loads(text))


def shape_of(config: Any, target: str, dtype: torch.dtype, *, process_bytes: int = 0) -> ModelShape:
    """Work out a model's shape from its config, with its linear weights packed as `target` (none, nf4 or int8)."""
    with quiet_transformers():
        model = build_skeleton(config, dtype)
    return shape_of_module(model, dissect(model), target, process_bytes=process_bytes)


def shape_of_module(model: Any, anatomy: Anatomy, target: str = "none", *, process_bytes: int = 0) -> ModelShape:
    """Work out the shape of transformers' own module, with or without weights."""
    dtype = model.get_input_embeddings().weight.dtype
    places = list(streamed_places(anatomy, layers_prefix(model, anatomy.layers[0].layer), dtype))
    n_bytes = measure(
        model, places, lambda place: packed_bytes(place, target, dtype),
        dtype=dtype, source_itemsize=2, process=process_bytes,
    )  # fmt: skip
    return shape_from(model, anatomy, places, n_bytes)


def shape_from(model: Any, anatomy: Anatomy, places: Sequence[Place], n_bytes: ModelBytes) -> ModelShape:
    """Work out the shape of a model whose bytes are counted already. All other ways to a shape lead here."""
    text = text_config(model)
    share = _visited_share(text)
    macs: list[int] = []
    widest = Fraction(1)
    # 1) the matrices that a token meets: of a mixture's stack of experts, the share that one token visits
    for player in anatomy.players:
        layer, met = anatomy.layers[player.layer], Fraction(0)
        for child in layer.children_of(player.kind):
            for name, weight in layer.layer.get_submodule(child).named_parameters():
                if weight.dim() < 2:  # norms and biases
                    continue
                is_experts = "experts" in name.split(".") and "shared" not in name
                met += weight.numel() * (share if is_experts else 1)
                stacked = weight.shape[0] * share if weight.dim() == 3 else 1  # (experts, rows, columns)
                widest = max(widest, max(weight.shape[-2:]) * stacked)
        macs.append(int(met))
    # 2) everything else; eager attention keeps scores, masked ones and weights, and its softmax is float32
    embedding, tied = model.get_input_embeddings().weight, set(getattr(model, "all_tied_weights_keys", None) or {})
    is_eager = getattr(text, "_attn_implementation", None) == "eager"
    each = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]  # Dots3's layers differ
    heads = max(getattr(layer, "num_attention_heads", 0) for layer in each)
    return ModelShape(
        players=anatomy.players,
        macs=tuple(macs),
        hidden=text.hidden_size,
        widest=round(widest),
        vocabulary=model.get_output_embeddings().weight.shape[0],
        itemsize=embedding.dtype.itemsize,
        parallel=foresee_parallel(anatomy, text.hidden_size, embedding.dtype),
        n_parameters=sum(value.numel() for name, value in model.state_dict().items() if name not in tied),
        n_streamed=sum(prod(place.shape) for place in places),
        n_bytes=n_bytes,
        score_bytes=heads * (3 * embedding.dtype.itemsize + 4) if is_eager else 0,
    )


def _visited_share(config: Any) -> Fraction:
    """Tell which share of a mixture's experts one token visits; all of them where the config does not say."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    visited = getattr(config, "num_experts_per_tok", None)
    return Fraction(visited, total) if visited and total else Fraction(1)
