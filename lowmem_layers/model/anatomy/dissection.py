"""Find the decoder layers of a causal language model, and in each the sublayers that are its players.

Found by structure: the decoder layers are the one `nn.ModuleList` of the language model that has as many items as the
config has hidden layers; where several have, the one whose items are transformers' own decoder-layer class. Inside a
layer, names and the attention classes that the model declares say which children make up which branch. Nothing of it
is believed before the examination of the loaded layers has seen that the layer's output is its input plus these
branches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lowmem_layers.errors import RemovalError
from lowmem_layers.game.players.player import Kind, Player, Role

_ATTENTION = re.compile(r"self_attn|attn|attention|self_attention|self_att|multi_head_attention|rel_attn")
_MIXER = re.compile(r"linear_attn|mamba|conv|short_conv|temporal_block|recurrent|mixer|mlstm_layer|mlstm|kda|rwkv|ssm")
_FEED_FORWARD = re.compile(r"mlps?|shared_mlp|block_sparse_moe|experts|feed_forward|ffn?|moe|mlp_block|channel_block")
_EXPERTS = re.compile(r"experts|.*moe.*|.*sparse.*", re.IGNORECASE)
_EXPERTS_CLASS = re.compile(r"(MoE|Moe|Experts)$")
_MIXER_CLASS = re.compile(
    r"Mamba|Delta|Lightning|LinearAttention|Conv|Recurrent|Mixer|SSM|LSTM|Rwkv|KDA|Lru", re.IGNORECASE
)
_FEED_FORWARD_CLASS = re.compile(r"mlp|moe|feedforward|ffn", re.IGNORECASE)
_BERT_ATTENTION, _BERT_FEED_FORWARD = ("attention.self", "attention.output.dense"), ("intermediate", "output.dense")
_FEEDING = re.compile(r"shared_transf(ormer)?")  # Zamba's shared attention: what it gives is what the mixer is given


@dataclass(frozen=True)
class Answer:
    """In which form a module hands back its output: alone, or first of `length` things in a tuple or a list.

    `flat`: as (B·T, D). `width` is D where it was seen (0: not yet); attention of Zamba's gives fewer than it takes.
    """

    length: int = 0
    flat: bool = False
    as_list: bool = False
    width: int = 0

    @classmethod
    def seen_in(cls, output: Any) -> Answer:
        """Read the form off an output."""
        several = isinstance(output, tuple | list)
        first = output[0] if several else output
        is_tensor = isinstance(first, torch.Tensor)
        width = first.shape[-1] if is_tensor else 0
        return cls(len(output) if several else 0, is_tensor and first.dim() == 2, isinstance(output, list), width)

    def holding(self, first: torch.Tensor) -> Any:
        """Hand a tensor back in this form. Shapes: `first` (B, T, D)."""
        first = first.flatten(0, 1) if self.flat and first.dim() == 3 else first  # (B·T, D)
        if not self.length:
            return first
        several = (first, *[None] * (self.length - 1))
        return list(several) if self.as_list else several


@dataclass(frozen=True)
class LayerAnatomy:
    """One decoder layer and the names of its children that make up each sublayer's branch.

    A branch may have several modules (OPT's fc1 and fc2, BERT's heads and the matrix behind them, Granite's shared
    experts beside the routed ones); a layer may have one branch alone (Mamba). In which form each child hands back its
    output (`answers`) and the layer does (`answer`) is seen when the layer is examined, and so is `scale`, by which a
    layer multiplies the residual stream besides adding to it (Gemma 4's layer scalar, Doge's residual weights).

    Shapes: `scale` (D,), or 1.
    """

    layer: nn.Module
    attention: tuple[str, ...]
    feed_forward: tuple[str, ...]
    kinds: tuple[Kind, ...]
    answers: Mapping[str, Answer] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    scale: Any = field(default=1.0, compare=False)

    def children_of(self, kind: str) -> tuple[str, ...]:
        """Name the child modules of a branch, by its place or by its kind."""
        return self.attention if kind in ("attn", "mixer") else self.feed_forward

    @property
    def roles(self) -> tuple[Role, ...]:
        """List the places that are taken, in order."""
        places: tuple[tuple[Role, tuple[str, ...]], ...] = (("attn", self.attention), ("ffn", self.feed_forward))
        return tuple(role for role, names in places if names)


@dataclass(frozen=True)
class Anatomy:
    """A model taken apart. Shapes: `layers` has one entry a decoder layer, `players` N."""

    layers: tuple[LayerAnatomy, ...]
    players: tuple[Player, ...]

    def position(self, layer: int, role: Role) -> int:
        """Tell a sublayer's place among the players."""
        before = sum(len(each.kinds) for each in self.layers[:layer])
        return before + self.layers[layer].roles.index(role)


def dissect(model: nn.Module) -> Anatomy:
    """Find every sublayer of a causal language model.

    Raises:
        RemovalError: the decoder layers, or the sublayers of one, cannot be told apart.
    """
    # 1) the list of decoder layers
    config = text_config(model)
    skipped, wanted = passed_by_text(config), getattr(config, "num_hidden_layers", None)
    if shared := getattr(config, "num_kv_shared_layers", 0):
        whose = f"its last {shared} decoder layers read the keys and values of earlier layers"
        if shared == wanted:
            whose = "all its decoder layers read the keys and values of another model, for which it drafts tokens"
        raise RemovalError(
            f"{type(model).__name__}: {whose}",
            "what they read would change or be missing where an earlier attention is removed: no exact removal",
        )
    listed = _decoder_layers(model, skipped)
    # 2) the attention classes that the model's own code declares, for recording attention weights
    declared: list[type] = []
    for module in model.modules():
        entries = (getattr(module, "_can_record_outputs", None) or {}).get("attentions", ())
        for entry in entries if isinstance(entries, list | tuple) else [entries]:
            target = getattr(entry, "target_class", entry)
            if isinstance(target, type):
                declared.append(target)
    # 3) each layer's sublayers
    layers = tuple(
        LayerAnatomy(layer, (), (), ()) if index in skipped else _dissect_layer(layer, tuple(declared))
        for index, layer in enumerate(listed)
    )
    players = tuple(Player(index, kind) for index, layer in enumerate(layers) for kind in layer.kinds)
    return Anatomy(layers, players)


def _decoder_layers(model: nn.Module, skipped: tuple[int, ...]) -> nn.ModuleList:
    """Find the one list that holds the decoder layers. `skipped` are those that text passes by.

    Raises:
        RemovalError: no list is it, or several may be.
    """
    config, decoder = text_config(model), text_decoder(model)
    all_lists = {name: m for name, m in decoder.named_modules() if isinstance(m, nn.ModuleList)}

    def of_layers(lists: Mapping[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
        met = {name: [item for i, item in enumerate(m) if i not in skipped] for name, m in lists.items()}
        own = [name for name, items in met.items() if all(isinstance(i, GradientCheckpointingLayer) for i in items)]
        return {name: lists[name] for name in own or met if own or all(map(_has_sublayers, met[name]))}

    # 1) by the number of layers (LongCat's hold two attentions each, and count as two)
    wanted = getattr(config, "num_hidden_layers", None)
    counts = (wanted, getattr(config, "num_layers", None))
    sized = next((of for n in counts if (of := {name: m for name, m in all_lists.items() if len(m) == n})), {})
    found = of_layers(sized)
    # 2) not those of a tower inside the decoder
    nearest = {name: m for name, m in found.items() if "." not in name}
    found = nearest if len(nearest) == 1 and decoder is not model else found
    if len(found) != 1:
        others = found or {name: m for name, m in of_layers(all_lists).items() if len(m)}
        several = ", ".join(f"{name} ({len(m)})" for name, m in others.items())
        raise RemovalError(
            f"{type(model).__name__}: cannot tell its {f'{wanted} ' if wanted else ''}decoder layers: "
            + (f"{len(others)} lists hold layers: {several}" if others else "no list holds layers"),
            "lowmem-layers takes decoder-only models whose layers stand in one list and run in turn, each once",
        )
    return next(iter(found.values()))


def text_config(model: nn.Module) -> Any:
    """Return the config of the language model, inside a multimodal one too."""
    config: Any = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def passed_by_text(config: Any) -> tuple[int, ...]:
    """List the decoder layers that only text with a picture goes through (Llama 3.2 Vision's cross-attention)."""
    return tuple(getattr(config, "cross_attention_layers", None) or ())


def text_decoder(model: nn.Module) -> nn.Module:
    """Return the decoder of the language model inside a multimodal one; without any, the model itself."""
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        return model
    get: Any = getattr(model, "get_decoder", None)
    found = get() if get is not None else None
    if not isinstance(found, nn.Module) or not any(isinstance(part, nn.ModuleList) for part in found.modules()):
        return model  # ModernBERT calls its output matrix the decoder
    return found


def _has_sublayers(layer: nn.Module) -> bool:
    """Tell a decoder layer of a model's own code by the names of its parts."""
    return any(_is_mixing(name) for name, _ in layer.named_children())


def _is_mixing(name: str) -> bool:
    return bool(_ATTENTION.fullmatch(name) or _MIXER.fullmatch(name))


def _is_named(name: str) -> bool:
    return _is_mixing(name) or bool(_FEED_FORWARD.fullmatch(name))


def _dissect_layer(layer: nn.Module, attention_classes: tuple[type, ...]) -> LayerAnatomy:
    """Name the children of one decoder layer that make up its branches, and say of which kind these are."""
    children = dict(layer.named_children())
    for name, child in list(children.items()):
        inner = {f"{name}.{part}": m for part, m in child.named_children() if _ATTENTION.fullmatch(part)}
        inner |= {f"{name}.{part}": m for part, m in child.named_children() if _MIXER.fullmatch(part)}
        if isinstance(child, nn.ModuleList) and _is_named(name):  # several that are removed together (LongCat)
            children.pop(name)
            children |= {f"{name}.{index}": part for index, part in enumerate(child)}
        elif inner and not (_is_named(name) or _FEEDING.fullmatch(name) or isinstance(child, attention_classes)):
            children.pop(name)  # a wrapper (DBRX's norm_attn_norm): what it wraps is the sublayer
            children |= inner
    if {"attention", "intermediate", "output"} <= children.keys():  # BERT's parts end in a sum and a norm of their own
        inner = {path: part for path, part in layer.named_modules() if path in _BERT_ATTENTION + _BERT_FEED_FORWARD}
        if len(inner) == 4:
            return LayerAnatomy(layer, _BERT_ATTENTION, _BERT_FEED_FORWARD, ("attn", "ffn"))
    feed_forward = [name for name in children if _FEED_FORWARD.fullmatch(_leaf(name))]
    if not feed_forward and {"fc1", "fc2"} <= children.keys():  # OPT holds the two matrices in the layer itself
        feed_forward = ["fc1", "fc2"]
    mixing = [
        name for name, child in children.items()
        if name not in feed_forward
        and (isinstance(child, attention_classes) or _is_mixing(_leaf(name)))
    ]  # fmt: skip
    # One module of one name for all kinds of layers (Nemotron-H's `mixer`): its class says of which kind it is.
    only = children[mixing[0]] if len(mixing) == 1 and not feed_forward else None
    is_known = only is None or isinstance(only, attention_classes)
    if not is_known and _FEED_FORWARD_CLASS.search(type(only).__name__):
        mixing, feed_forward = [], mixing
    if not mixing and not feed_forward:
        raise RemovalError(
            f"{type(layer).__name__}: found no sublayers among its parts ({', '.join(children)})",
            "lowmem-layers needs an attention, a mixer or a feed-forward sublayer in every decoder layer",
        )
    kinds: list[Kind] = []
    if mixing:
        is_mixer = any(_is_mixer(name, children[name], attention_classes) for name in mixing)
        kinds.append("mixer" if is_mixer else "attn")
    if feed_forward:
        has_experts = any(
            _EXPERTS.fullmatch(path.rpartition(".")[2] or _leaf(name)) or _EXPERTS_CLASS.search(type(part).__name__)
            for name in feed_forward
            for path, part in children[name].named_modules()
        )
        kinds.append("moe" if has_experts else "ffn")
    return LayerAnatomy(layer, tuple(mixing), tuple(feed_forward), tuple(kinds))


def _is_mixer(name: str, module: nn.Module, attention_classes: tuple[type, ...]) -> bool:
    """Tell a mixer from attention: by its class, whatever it is called, else by its name."""
    if _MIXER_CLASS.search(type(module).__name__):
        return True
    return not isinstance(module, attention_classes) and _ATTENTION.fullmatch(_leaf(name)) is None


def _leaf(path: str) -> str:
    """Give the last name of a path, without the index of an item of a list: `self_attn.0` is a `self_attn`."""
    return re.sub(r"\.\d+$", "", path).rpartition(".")[2]
