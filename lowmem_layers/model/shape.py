"""A model's shape: what its modules say, without their weights, about sublayers, work and memory.

Whoever needs a size takes it from here: the plan, the check before loading, and the engine. Shapes of three models
that are too large to have at hand are shipped, so that a run on them can be planned anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import resources
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.game.players.player import Player
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect, text_config
from lowmem_layers.model.anatomy.weightless import feed_forward_numbers, foresee_parallel
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.homes.places import Place, streamed_places
from lowmem_layers.model.placement import ModelBytes
from lowmem_layers.model.sizes import measure, packed_bytes

SHIPPED = ("llama-3-8b", "llama-3-70b", "mixtral-8x7b")
# Matrices that compute several things at once, by what transformers calls them: how many.
_JOINED = {"gate_up": 2, "qkv": 3, "query_key_value": 3, "c_attn": 3}


@dataclass(frozen=True)
class ModelShape:
    """What is known of a model's sublayers and sizes before a weight is read.

    `parallel`: attention and feed-forward of a layer act side by side, or it cannot be told whether they do. The
    examination of the loaded layers settles it.

    Shapes: `players` and `macs` have N entries.
    Units: `macs` are multiply-adds a token of a sublayer's matrix products (a token visits `num_experts_per_tok`
        experts; attention over the context is left out); `widest` counts a token's numbers where they are most, in
        all the experts it visits; `kept` counts those that a sublayer keeps for a token at once while it computes,
        `kept_attention` those of attention; `itemsize` is bytes a number of the hidden states; `n_streamed` counts the
        numbers of all weights that are brought in for a visit; `pair_bytes` is what attention keeps for a pair of
        tokens of a row: masks, and scores in all heads where it computes them step by step (transformers' eager).
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
    kept: int
    kept_attention: int
    pair_bytes: int

    def states_at_once(self, chunk_tokens: int, n_rows: int, n_tokens: int) -> int:
        """Say how many states of some rows make a chunk of about `chunk_tokens`, at least one.

        Fewer, where attention's masks and scores would take more than a chunk may. Those of one row are counted with
        the row itself.
        """
        pairs = self.pair_bytes * n_tokens**2
        tokens = self.kept_attention * self.itemsize * n_tokens
        by_memory = (chunk_tokens * self.kept * self.itemsize + pairs) // (n_rows * (tokens + pairs))
        return max(1, min(chunk_tokens // (n_rows * n_tokens), by_memory))

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
    widest = {True: Fraction(1), False: Fraction(1)}  # of attention, of everything else
    # 1) the matrices that a token meets: of a mixture's stack of experts, the share that one token visits
    for player in anatomy.players:
        layer, met = anatomy.layers[player.layer], Fraction(0)
        for child in layer.children_of(player.kind):
            for name, weight in layer.layer.get_submodule(child).named_parameters():
                if weight.dim() < 2:  # norms and biases
                    continue
                is_experts = "experts" in name.split(".") and "shared" not in name
                met += weight.numel() * (share if is_experts else 1)
                stacked = weight.shape[0] * share if weight.dim() == 3 else Fraction(1)  # (experts, rows, columns)
                joined = next((n for words, n in _JOINED.items() if words in name.lower()), 1)
                width = max(weight.shape[-2:]) * stacked / joined
                widest[player.is_attention] = max(widest[player.is_attention], width)
        macs.append(int(met))
    # 2) everything else
    embedding, tied = model.get_input_embeddings().weight, set(getattr(model, "all_tied_weights_keys", None) or {})
    hidden, itemsize = text.hidden_size, embedding.dtype.itemsize
    return ModelShape(
        players=anatomy.players,
        macs=tuple(macs),
        hidden=hidden,
        widest=round(max(widest.values())),
        vocabulary=model.get_output_embeddings().weight.shape[0],
        itemsize=itemsize,
        parallel=foresee_parallel(anatomy, hidden, embedding.dtype),
        n_parameters=sum(value.numel() for name, value in model.state_dict().items() if name not in tied),
        n_streamed=sum(prod(place.shape) for place in places),
        n_bytes=n_bytes,
        kept=_kept(anatomy, places, hidden, widest),
        kept_attention=2 * hidden + 5 * round(widest[True]),
        pair_bytes=_pair_bytes(text, itemsize),
    )


def _kept(anatomy: Anatomy, places: Sequence[Place], hidden: int, widest: Mapping[bool, Fraction]) -> int:
    """Count the numbers that a sublayer keeps for a token at once, at most: attention's, or a feed-forward's.

    Attention, counted by hand in transformers' own code: while queries turn, the stream, its norm, what is added, keys
    and values, and six times the queries; afterwards fewer (`kept_attention`): the stream, its norm, and queries, keys
    and values for every head, as the kernel reads them, and its output. A feed-forward is tried out.
    """
    attention = 4 * hidden + 7 * round(widest[True])
    feed_forward = feed_forward_numbers(anatomy, hidden)
    if feed_forward is None:  # by hand: four intermediates of the widest product, and six of the hidden width
        feed_forward = 4 * round(widest[False]) + 6 * hidden
    # one expert at a time: each pair's output in float32, and its input once more
    divided = 3 * hidden if any(place.n_experts for place in places) else 0
    return max(attention, feed_forward + divided)


def _pair_bytes(config: Any, itemsize: int) -> int:
    """Count what attention keeps for a pair of tokens of a row. Units: bytes.

    Its mask for every state, as a number and once more in a width that the kernel takes. Eager attention also keeps
    scores, masked ones and weights of each head, and its softmax is float32. So does torch's own attention where keys
    that all heads share are handed to it as one head (Falcon-7B): its kernels refuse them, and it goes step by step, in
    float32. Source: torch 2.13, `_scaled_dot_product_attention_math`.
    """
    masks = 3 * itemsize
    if getattr(config, "_attn_implementation", None) != "eager":
        shares = config.model_type == "falcon" and config.multi_query and not config.new_decoder_architecture
        return masks + (config.num_attention_heads * 4 * 4 if shares else 0)
    each = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]  # Dots3's layers differ
    return masks + max(getattr(layer, "num_attention_heads", 0) for layer in each) * (3 * itemsize + 4)


def _visited_share(config: Any) -> Fraction:
    """Tell which share of a mixture's experts one token visits; all of them where the config does not say."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    visited = getattr(config, "num_experts_per_tok", None)
    return Fraction(visited, total) if visited and total else Fraction(1)
