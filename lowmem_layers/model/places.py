"""Which weights of a model are streamed, and which of those are quantised."""

from __future__ import annotations

from collections.abc import Iterator

from lowmem_layers.model.anatomy import Anatomy
from lowmem_layers.model.store import Place


def streamed_places(anatomy: Anatomy, prefix: str) -> Iterator[Place]:
    """List the sublayers' weights of two or more dimensions, layer by layer; norms and biases are small and stay."""
    for index, layer in enumerate(anatomy.layers):
        for kind in ("attn", "ffn"):
            for child in layer.children_of(kind):
                for key, parameter in layer.layer.get_submodule(child).named_parameters():
                    if parameter.dim() < 2:
                        continue
                    path, _, attribute = f"{child}.{key}".rpartition(".")
                    module = layer.layer.get_submodule(path)
                    yield Place(
                        index, kind, f"{prefix}.{index}.{child}.{key}", module, attribute, tuple(parameter.shape)
                    )


def is_quantised(place: Place) -> bool:
    """Tell the weights that are worth packing: linear layers and fused experts, but no routers and convolutions."""
    if len(place.shape) == 3:
        return "experts" in place.key.split(".") and "bias" not in place.attribute
    if type(place.module).__name__ not in ("Linear", "Conv1D"):
        return False
    name = place.key.split(".")[-2]
    return name not in ("gate", "router")
