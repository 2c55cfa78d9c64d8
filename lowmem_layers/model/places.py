"""Which weights of a model are streamed, and which of those are quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from lowmem_layers.model.store import Place

_ATTENTION = re.compile(r"self_attn|attn|attention|self_attention|linear_attn|temporal_block")
_ROUTER = re.compile(r"(^|\.)(gate|router)\.weight$")


def decoder_layers(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """Find the one list of decoder layers."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise LookupError


def streamed_places(layers: nn.ModuleList, prefix: str) -> Iterator[Place]:
    """List the weights with two or more dimensions, layer by layer: norms and biases are small and stay resident."""
    for index, layer in enumerate(layers):
        for key, parameter in layer.named_parameters():
            if parameter.dim() < 2:
                continue
            kind = "attn" if _ATTENTION.fullmatch(key.split(".")[0]) else "ffn"
            path, _, attribute = key.rpartition(".")
            module = layer.get_submodule(path)
            yield Place(index, kind, f"{prefix}.{index}.{key}", module, attribute, tuple(parameter.shape))


def is_quantised(place: Place) -> bool:
    """Tell the weights that are worth packing: linear layers and fused experts, not routers and convolutions."""
    if _ROUTER.search(place.key):
        return False
    return len(place.shape) == 3 or type(place.module).__name__ in ("Linear", "Conv1D")
