"""Find the decoder layers of a causal language model, and in each its attention and its feed-forward sublayer.

Found by structure: the decoder layers are the one `nn.ModuleList` that has as many items as the config has hidden
layers and whose items are all transformers' own decoder-layer class. Only inside a layer, and only where the model
does not declare its attention class, do names decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lowmem_layers.errors import RemovalError
from lowmem_layers.game.players.player import Player, players_of

_ATTENTION = re.compile(r"self_attn|attn|attention|self_attention")
_FEED_FORWARD = re.compile(r"mlp|block_sparse_moe|feed_forward|ffn|moe")
_EXPERTS = re.compile(r"experts|.*moe.*|.*sparse.*", re.IGNORECASE)


@dataclass(frozen=True)
class LayerAnatomy:
    """One decoder layer and the names of its children that make up each sublayer's branch.

    `feed_forward` has one name, or two where the layer holds the two matrices itself (OPT: fc1, fc2). The last two
    fields say in which form the feed-forward and the layer hand back their output; a probe of the real modules fills
    them in (attention hands back a pair in every family of transformers 5).
    """

    layer: nn.Module
    attention: str
    feed_forward: tuple[str, ...]
    ffn_kind: Literal["ffn", "moe"]
    ffn_returns_tuple: bool = False
    layer_returns_tuple: bool = False

    def children_of(self, kind: str) -> tuple[str, ...]:
        """Name the child modules of the attention (`attn`) or the feed-forward branch (any other kind)."""
        return (self.attention,) if kind == "attn" else self.feed_forward


@dataclass(frozen=True)
class Anatomy:
    """A model taken apart. Shapes: `layers` has N / 2 entries, `players` N."""

    layers: tuple[LayerAnatomy, ...]
    players: tuple[Player, ...]


def dissect(model: nn.Module) -> Anatomy:
    """Find every sublayer of a causal language model.

    Raises:
        RemovalError: the decoder layers, or a layer's attention or feed-forward sublayer, cannot be told apart.
    """
    # 1) the list of decoder layers
    wanted = getattr(text_config(model), "num_hidden_layers", None)
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == wanted
        and all(isinstance(item, GradientCheckpointingLayer) for item in module)
    }
    if len(found) != 1:
        names = ", ".join(found) or "none"
        raise RemovalError(
            f"{type(model).__name__}: cannot tell its {wanted} decoder layers (candidates: {names})",
            "lowmem-layers takes decoder-only models whose layers stand in one list",
        )
    # 2) the attention classes that the model's own code declares, for recording attention weights
    declared: list[type] = []
    for module in model.modules():
        entries = (getattr(module, "_can_record_outputs", None) or {}).get("attentions", ())
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            target = getattr(entry, "target_class", entry)
            if isinstance(target, type):
                declared.append(target)
    # 3) each layer's two sublayers
    layers = tuple(_dissect_layer(layer, tuple(declared)) for layer in next(iter(found.values())))
    return Anatomy(layers, players_of([layer.ffn_kind for layer in layers]))


def text_config(model: nn.Module) -> Any:
    """Return the config of the language model, inside a multimodal one too."""
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _dissect_layer(layer: nn.Module, attention_classes: tuple[type, ...]) -> LayerAnatomy:
    """Name the children of one decoder layer that are its attention and its feed-forward sublayer."""
    children = dict(layer.named_children())

    def only(what: str, names: list[str]) -> str:
        if len(names) == 1:
            return names[0]
        raise RemovalError(
            f"{type(layer).__name__}: found {len(names)} {what} sublayers among its parts ({', '.join(children)})",
            "lowmem-layers needs exactly one attention and one feed-forward sublayer a decoder layer",
        )

    attention = [name for name, child in children.items() if isinstance(child, attention_classes)]
    attention = attention or [name for name in children if _ATTENTION.fullmatch(name)]
    feed_forward = [name for name in children if _FEED_FORWARD.fullmatch(name)]
    if not feed_forward and {"fc1", "fc2"} <= children.keys():  # OPT holds the two matrices in the layer itself
        return LayerAnatomy(layer, only("attention", attention), ("fc1", "fc2"), "ffn")
    ffn = only("feed-forward", feed_forward)
    parts = [name.rpartition(".")[2] for name, _ in children[ffn].named_modules() if name]
    kind = "moe" if any(_EXPERTS.fullmatch(part) for part in parts) else "ffn"
    return LayerAnatomy(layer, only("attention", attention), (ffn,), kind)
