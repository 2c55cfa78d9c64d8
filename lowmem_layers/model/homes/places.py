"""Which weights of a model are streamed, and which of those are quantised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from lowmem_layers.model.anatomy.dissection import Anatomy, LayerAnatomy


@dataclass(frozen=True)
class Place:
    """Say where a streamed weight belongs: parameter `attribute` of `module`, in sublayer `kind` of `layer`.

    `n_experts` counts the experts that its first dimension lists, where they can be brought in one at a time.
    """

    layer: int
    kind: str
    key: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    n_experts: int = 0


def streamed_places(anatomy: Anatomy, prefix: str, dtype: torch.dtype) -> Iterator[Place]:
    """List the sublayers' weights of two or more dimensions, layer by layer; norms and biases are small and stay.

    So do weights in another precision than `dtype`, that of the slots: routers that their family keeps in float32.
    """
    for index, layer in enumerate(anatomy.layers):
        for kind in ("attn", "ffn"):
            yield from sublayer_places(layer, kind, index, prefix, dtype)


def sublayer_places(layer: LayerAnatomy, kind: str, index: int, prefix: str, dtype: torch.dtype) -> Iterator[Place]:
    """List the weights of two or more dimensions of one sublayer, which are there: of a streamed one, in a visit."""
    for child in layer.children_of(kind):
        for key, parameter in layer.layer.get_submodule(child).named_parameters():
            if parameter.dim() < 2 or parameter.dtype != dtype:
                continue
            path, _, attribute = f"{child}.{key}".rpartition(".")
            module = layer.layer.get_submodule(path)
            shape = tuple(parameter.shape)
            n_experts = shape[0] if is_divisible(module) else 0
            yield Place(index, kind, f"{prefix}.{index}.{child}.{key}", module, attribute, shape, n_experts)


def is_divisible(module: nn.Module) -> bool:
    """Tell an experts module of transformers' common interface with nothing in it that its experts share."""
    count = getattr(module, "num_experts", None)
    common = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
    stacks = list(module.parameters())
    return common and bool(stacks) and all(stack.dim() >= 2 and stack.shape[0] == count for stack in stacks)


def is_quantised(place: Place) -> bool:
    """Tell the weights that are worth packing: linear layers and fused experts, but no routers and convolutions."""
    if len(place.shape) == 3:
        return "experts" in place.key.split(".") and "bias" not in place.attribute
    if type(place.module).__name__ not in ("Linear", "Conv1D"):
        return False
    name = place.key.split(".")[-2]
    return name not in ("gate", "router")
