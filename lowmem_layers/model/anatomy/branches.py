"""What one sublayer adds to the residual stream, computed with nothing but that sublayer.

A decoder layer's own forward always runs both of its sublayers. To advance a state by one of them alone, the general
way is the layer's own forward with the other one stubbed; it spends a needless normalisation and addition. Nearly
every family, though, computes a branch as post-norm(sublayer(pre-norm(x))), times a constant: which norms those are,
and with what arguments the layer calls its attention, is found here by trial on the loaded layer and accepted only if
the result equals the layer's own, bit for bit. A layer without such a form keeps the general way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.anatomy.dissection import LayerAnatomy
from lowmem_layers.model.anatomy.forward import LayerCall
from lowmem_layers.model.anatomy.removal import layer_without
from lowmem_layers.model.memory import is_machines_fault

Arguments = Mapping[str, tuple[str | int | None, Any]]
"""A sublayer's parameter → the layer's argument of that name or position (None: there is none), and a constant."""


@dataclass(frozen=True)
class BranchForm:
    """A branch as child modules: before, the sublayer, after; a constant factor; and the sublayer's other arguments.

    `hidden_name` is the name or position by which the sublayer is given the hidden states.
    """

    before: str | None
    sublayer: str
    after: str | None
    factor: float
    hidden_name: str | int
    arguments: Arguments


def branch_output(
    layer: LayerAnatomy, kind: str, form: BranchForm | None, x: torch.Tensor, call: LayerCall
) -> torch.Tensor:
    """Compute what a sublayer adds to the residual stream. Shapes: `x` (B, T, D) → (B, T, D)."""
    if form is None:
        return stubbed_layer(layer, kind, x, call) / layer.scale - x
    module = layer.layer
    hidden = getattr(module, form.before)(x) if form.before else x  # (B, T, D)
    # 1) the sublayer, called with what the layer was called with
    kwargs: dict[str, Any] = {}
    for name, (source, constant) in form.arguments.items():
        if source is None:
            kwargs[name] = constant
        else:
            kwargs[name] = call.args[source] if isinstance(source, int) else call.kwargs[source]
    sublayer = module.get_submodule(form.sublayer)
    if form.hidden_name == 0:
        output = sublayer(hidden, **kwargs)
    else:
        output = sublayer(**{str(form.hidden_name): hidden}, **kwargs)
    output = output[0] if isinstance(output, tuple | list) else output  # (B, T, D)
    # 2) what the layer does to its output
    output = getattr(module, form.after)(output) if form.after else output
    return output * form.factor if form.factor != 1.0 else output


def stubbed_layer(layer: LayerAnatomy, kind: str, x: torch.Tensor, call: LayerCall) -> torch.Tensor:
    """Run the layer's own forward with only one of its sublayers present. Shapes: (B, T, D) → (B, T, D)."""
    with layer_without(layer, *(role for role in layer.roles if role != kind)):
        return run_layer(layer, x, call)


def run_layer(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> torch.Tensor:
    """Run the layer's own forward. Shapes: (B, T, D) → (B, T, D)."""
    output = layer.layer(x, *call.args, **call.kwargs)
    return output[0] if layer.answer.length else output


def find_form(
    layer: LayerAnatomy, kind: str, x: torch.Tensor, call: LayerCall, hint: BranchForm | None
) -> BranchForm | None:
    """Try the forms that a branch can have. Return the one that equals the layer's own forward bit for bit, or None.

    `hint`, the form found in the layer before, is tried first.
    """
    if len(layer.children_of(kind)) != 1:
        return None
    expected = stubbed_layer(layer, kind, x, call)  # (B, T, D)

    def is_it(form: BranchForm) -> bool:
        try:
            output = branch_output(layer, kind, form, x, call)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            if is_machines_fault(error):  # says nothing about the form
                raise
            return False  # another layer's form: its modules or arguments are not this one's
        return output.shape == x.shape and torch.equal((x + output) * layer.scale, expected)

    if hint is not None and is_it(hint):
        return hint
    # 1) what the layer calls its sublayer with
    name = layer.children_of(kind)[0]
    seen: list[LayerCall] = []
    handle = layer.layer.get_submodule(name).register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(LayerCall(args, kwargs)), with_kwargs=True
    )
    try:
        stubbed_layer(layer, kind, x, call)
    finally:
        handle.remove()
    traced = _trace_arguments(seen[0], x, call)
    if traced is None:
        return None
    # 2) every pair of norms around it, and the constants that families scale a branch by
    sublayers = {*layer.attention, *layer.feed_forward}
    idle = nn.Dropout | nn.Identity
    children = [name for name, child in layer.layer.named_children() if not isinstance(child, idle)]
    norms = [None, *(child for child in children if child not in sublayers)]
    factors = sorted({1.0, float(getattr(layer.layer, "residual_multiplier", 1.0))})
    for before, after, factor in product(norms, norms, factors):
        if before is None or before != after:
            form = BranchForm(before, name, after, factor, *traced)
            if is_it(form):
                return form
    return None


def _trace_arguments(inner: LayerCall, x: torch.Tensor, call: LayerCall) -> tuple[str | int, Arguments] | None:
    """Trace each of a sublayer's arguments to the layer's own. Return None where one cannot be traced."""
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
        # the layer's argument of the same name first, else the very same object under another name
        is_plain = value is None or isinstance(value, bool | int | float | str)
        same_name = [key for key, candidate in sources if key == name and candidate is value]
        same_object = [key for key, candidate in sources if candidate is value and not is_plain]
        origin = next(iter(same_name + same_object), None)
        if origin is None and not is_plain:
            return None
        arguments[name] = (origin, None if origin is not None else value)
    return hidden_name, arguments
