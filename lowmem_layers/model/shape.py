"""A model's shape: what its config alone says about its sublayers, their work and their bytes.

Shapes of three models that are too large to have at hand are shipped, so that a run on them can be planned anywhere.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from importlib import resources
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.game.players.player import Player
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.homes.places import streamed_places
from lowmem_layers.model.homes.store import Place
from lowmem_layers.model.placement import ModelBytes
from lowmem_layers.model.sizes import measure, packed_bytes

SHIPPED = ("llama-3-8b", "llama-3-70b", "mixtral-8x7b")


@dataclass(frozen=True)
class ModelShape:
    """A model as a plan sees it.

    Shapes: `players` and `macs` have N entries. Units: `macs` and `head_macs` are multiply-adds a token of the weights'
    matrix products (a token visits `num_experts_per_tok` experts); attention over the context is left out. `widest`
    counts a token's numbers at its widest, `n_streamed` the numbers of all weights that are brought in for a visit.
    """

    players: tuple[Player, ...]
    macs: tuple[int, ...]
    head_macs: int
    hidden: int
    widest: int
    vocabulary: int
    n_parameters: int
    n_streamed: int
    n_bytes: ModelBytes


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
    """Work out a model's shape, with its linear weights packed as `target` (none, nf4 or int8), without its weights."""
    with quiet_transformers():
        model = build_skeleton(config, dtype)
    anatomy = dissect(model)
    places = list(streamed_places(anatomy, layers_prefix(model, anatomy.layers[0].layer), dtype))
    n_bytes = measure(
        model, places, lambda place: packed_bytes(place, target, dtype),
        dtype=dtype, source_itemsize=2, process=process_bytes,
    )  # fmt: skip
    return shape_from(model, anatomy, places, n_bytes)


def shape_from(model: Any, anatomy: Anatomy, places: list[Place], n_bytes: ModelBytes) -> ModelShape:
    """Work out the shape of a model that is taken apart and counted already."""
    text = model.config.get_text_config(decoder=True)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    share = _active_share(text)
    wide = [max(p.shape[-2:]) * (p.shape[0] * share if len(p.shape) == 3 else 1) for p in places]
    return ModelShape(
        players=anatomy.players,
        macs=tuple(_macs(places, player, share) for player in anatomy.players),
        head_macs=text.hidden_size * text.vocab_size,
        hidden=text.hidden_size,
        widest=round(max(wide)),
        vocabulary=text.vocab_size,
        n_parameters=sum(value.numel() for name, value in model.state_dict().items() if name not in tied),
        n_streamed=sum(prod(place.shape) for place in places),
        n_bytes=n_bytes,
    )


def single_layer(config: Any, dtype: torch.dtype, vocabulary: int, limit_bytes: int) -> Any:
    """Build the model with one decoder layer, random weights and a small vocabulary; None where that is too large."""
    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    small.__dict__.pop("quantization_config", None)
    text = small.get_text_config(decoder=True)
    text.num_hidden_layers, text.vocab_size = 1, vocabulary
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    with quiet_transformers():
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(small, dtype=dtype)
        if sum(weight.numel() * weight.element_size() for weight in shape.parameters()) > limit_bytes:
            return None
        return AutoModelForCausalLM.from_config(small, dtype=dtype)


def _macs(places: list[Place], player: Player, active_share: float) -> int:
    kind = "attn" if player.is_attention else "ffn"
    mine = [place for place in places if (place.layer, place.kind) == (player.layer, kind)]
    return round(sum(prod(place.shape) * (active_share if len(place.shape) == 3 else 1) for place in mine))


def _active_share(config: Any) -> float:
    """Tell which share of the experts one token visits."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), 0)
    visited = getattr(config, "num_experts_per_tok", None) or total
    return visited / total if total else 1.0
