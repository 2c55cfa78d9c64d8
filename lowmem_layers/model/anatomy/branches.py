"""What one sublayer adds to the residual stream, computed with nothing but that sublayer.

A decoder layer's own forward always runs both of its sublayers. To advance a state by one of them alone, the general
way is the layer's own forward with the other one stubbed; it spends a needless normalisation and addition. Nearly
every family, though, computes a branch as post-norm(sublayer(pre-norm(x))), times a constant: which norms those are,
and with what arguments the layer calls its attention, is found here by trial on the loaded layer and accepted only if
the result equals the layer's own, bit for bit. A layer without such a form keeps the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.anatomy.dissection import LayerAnatomy
from lowmem_layers.model.anatomy.forward import LayerCall
from lowmem_layers.model.anatomy.removal import layer_without


@dataclass(frozen=True)
class Recipe:
    """A branch as child modules: before, the sublayer, after; a constant factor; and the sublayer's other arguments.

    `arguments` maps a parameter of the sublayer to the layer's argument of that name or position, or to a constant.
    """

    before: str | None
    sublayer: str
    after: str | None
    factor: float
    hidden_name: str | int
    arguments: Mapping[str, tuple[str | int | None, Any]]


def branch_output(
    layer: LayerAnatomy, kind: str, recipe: Recipe | None, x: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """Compute what a sublayer adds to the residual stream. Shapes: `x` (B, T, D) → (B, T, D)."""
    if recipe is None:
        return stubbed_layer(layer, kind, x, call) - x
    module = layer.layer
    hidden = getattr(module, recipe.before)(x) if recipe.before else x
    output = _call(getattr(module, recipe.sublayer), recipe, hidden, call)
    output = getattr(module, recipe.after)(output) if recipe.after else output
    return output * recipe.factor if recipe.factor != 1.0 else output


def stubbed_layer(layer: LayerAnatomy, kind: str, x: torch.Tensor, call: LayerCall) -> torch.Tensor:
    """Run the layer's own forward with only one of its sublayers present. Shapes: (B, T, D) → (B, T, D)."""
    with layer_without(layer, "ffn" if kind == "attn" else "attn"):
        return run_layer(layer, x, call)


def run_layer(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> torch.Tensor:
    """Run the layer's own forward. Shapes: (B, T, D) → (B, T, D)."""
    output = layer.layer(x, *call.args, **call.kwargs)
    return output[0] if layer.layer_returns_tuple else output


def find_recipe(layer: LayerAnatomy, kind: str, x: torch.Tensor, call: LayerCall, hint: Recipe | None) -> Recipe | None:
    """Try the forms a branch can have; return the one that equals the layer's own forward bit for bit, or None.

    `hint`, the recipe of the layer before, is tried first.
    """
    if kind != "attn" and len(layer.feed_forward) != 1:
        return None
    expected = stubbed_layer(layer, kind, x, call)
    for recipe in _candidates(layer, kind, x, call, hint):
        if torch.equal(x + branch_output(layer, kind, recipe, x, call), expected):
            return recipe
    return None


def _candidates(
    layer: LayerAnatomy, kind: str, x: torch.Tensor, call: LayerCall, hint: Recipe | None
) -> Iterator[Recipe]:
    if hint is not None:
        yield hint
    name = layer.children_of(kind)[0]
    found = _arguments(_watch(layer, kind, name, x, call), x, call)
    if found is None:
        return
    hidden_name, arguments = found
    norms = [None, *_norms(layer)]
    factors = {1.0, float(getattr(layer.layer, "residual_multiplier", 1.0))}
    for before, after, factor in product(norms, norms, sorted(factors)):
        if before is None or before != after:
            yield Recipe(before, name, after, factor, hidden_name, arguments)


def _norms(layer: LayerAnatomy) -> list[str]:
    sublayers = {layer.attention, *layer.feed_forward}
    return [name for name, child in layer.layer.named_children() if name not in sublayers and not _is_idle(child)]


def _is_idle(child: nn.Module) -> bool:
    return isinstance(child, nn.Dropout | nn.Identity)


def _watch(layer: LayerAnatomy, kind: str, name: str, x: torch.Tensor, call: LayerCall) -> LayerCall:
    """Run the layer with the other sublayer stubbed and keep what the sublayer is called with."""
    seen: list[LayerCall] = []
    with _watching(getattr(layer.layer, name), lambda args, kwargs: seen.append(LayerCall(args, kwargs))):
        stubbed_layer(layer, kind, x, call)
    return seen[0]


@contextmanager
def _watching(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _m, args, kwargs: see(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _arguments(
    inner: LayerCall, x: torch.Tensor, call: LayerCall
) -> tuple[str | int, dict[str, tuple[str | int | None, Any]]] | None:
    """Trace each of the sublayer's arguments to the layer's own; None where one can't be traced."""
    given = dict(enumerate(inner.args)) | inner.kwargs
    hidden_name = next((k for k, v in given.items() if isinstance(v, torch.Tensor) and v.shape == x.shape), None)
    if hidden_name is None or hidden_name not in (0, "hidden_states"):
        return None
    sources: list[tuple[str | int, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    arguments: dict[str, tuple[str | int | None, Any]] = {}
    for name, value in given.items():
        if name == hidden_name:
            continue
        if isinstance(name, int):
            return None
        origin = _origin(name, value, sources)
        if origin is None and not _is_plain(value):
            return None
        arguments[name] = (origin, None if origin is not None else value)
    return hidden_name, arguments


def _origin(name: str, value: Any, sources: list[tuple[str | int, Any]]) -> str | int | None:
    """Find the layer's argument that is handed on: one of the same name first, else the very same object."""
    same_name = [key for key, candidate in sources if key == name and candidate is value]
    same_object = [key for key, candidate in sources if candidate is value and not _is_plain(value)]
    return next(iter(same_name + same_object), None)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _call(module: nn.Module, recipe: Recipe, hidden: torch.Tensor, call: LayerCall) -> torch.Tensor:
    kwargs = {name: _resolve(source, constant, call) for name, (source, constant) in recipe.arguments.items()}
    output = (
        module(hidden, **kwargs) if recipe.hidden_name == 0 else module(**{str(recipe.hidden_name): hidden}, **kwargs)
    )
    return output[0] if isinstance(output, tuple) else output


def _resolve(source: str | int | None, constant: Any, call: LayerCall) -> Any:
    if source is None:
        return constant
    return call.args[source] if isinstance(source, int) else call.kwargs[source]
