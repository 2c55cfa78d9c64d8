"""Examine a model's decoder layers before anything is believed about them.

Each layer of a loaded model is visited once with a few tokens: in what form the layer and its feed-forward hand back
their output; whether the output equals the input when both sublayers are removed (a model that fails cannot be ablated
exactly and is refused); how each sublayer can be computed alone (`branches`); and whether the two act one after the
other on the residual stream or side by side on the layer's input (GPT-J, GPT-NeoX, Phi, Falcon, Cohere).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.branches import BranchForm, branch_output, find_form, run_layer
from lowmem_layers.model.anatomy.dissection import Anatomy, Answer, LayerAnatomy, text_config
from lowmem_layers.model.anatomy.forward import LayerCall, first_call, handed_beside, prologue
from lowmem_layers.model.anatomy.removal import layer_without, refusing
from lowmem_layers.model.anatomy.staying import NORM_STAYS, OWN_INPUT_STAYS, scale_of, what_stays
from lowmem_layers.model.homes.store import LayerStore, Visit

BOTH = frozenset({"attn", "ffn"})
_ROWS, _TOKENS = 3, 5
_TOGETHER = "a decoder layer holds two attentions and several feed-forwards, which are removed together"


@dataclass(frozen=True)
class LayerProgram:
    """How one decoder layer is driven: its parts, and the form of each sublayer's branch by kind (`attn`, `ffn`).

    `parallel`: both sublayers read the layer's input. `ffn_mixes`: the feed-forward mixes tokens (RWKV's looks at the
    token before, Inkling's ends in a convolution). `whole`: why the layer cannot be driven sublayer by sublayer but as
    a whole, by its own forward with its sublayers' outputs set to zero; empty where it can.
    """

    anatomy: LayerAnatomy
    forms: Mapping[str, BranchForm | None]
    parallel: bool
    ffn_mixes: bool = False
    whole: str = ""

    @property
    def stays(self) -> str:
        """Say what the layer does to the residual stream without its sublayers; empty where it hands the stream on."""
        if self.whole in (OWN_INPUT_STAYS, NORM_STAYS):
            return self.whole
        return "" if isinstance(self.anatomy.scale, float) else "a layer scales the channels of the residual stream"


def examine_layers(module: Any, anatomy: Anatomy, store: LayerStore) -> tuple[LayerProgram, ...]:
    """Visit every layer once and work out its program.

    Raises:
        RemovalError: removing both sublayers of a layer does not leave its input unchanged, or its output is not its
            input plus what each sublayer adds.
    """
    embedding = module.get_input_embeddings().weight
    width = getattr(text_config(module), "hidden_size", embedding.shape[-1])
    device = next(module.parameters()).device
    ids = torch.arange(_ROWS * _TOKENS, device=device).view(_ROWS, _TOKENS) + 3
    present = torch.ones_like(ids)
    present[-1, -1] = 0  # so that every family hands a mask to its layers, and it can be seen where it goes
    inputs = {"input_ids": ids, "attention_mask": present}
    programs: list[LayerProgram] = []
    calls: tuple[LayerCall, ...] = ()
    for visit in store.sweep([Visit(index, BOTH) for index in range(len(anatomy.layers))]):
        layer = anatomy.layers[visit.layer]
        if not layer.kinds:  # text passes it by
            programs.append(LayerProgram(layer, {}, parallel=False))
            continue
        if not calls:
            layer, calls = _begin(module, anatomy, inputs, width)
        generator = torch.Generator().manual_seed(visit.layer)
        x = torch.randn(_ROWS, _TOKENS, width, generator=generator)  # (B, T, D) residual states of unit scale
        x = x.to(device=embedding.device, dtype=embedding.dtype)
        layer = _with_forms(layer, x, calls[visit.layer])
        try:
            programs.append(_examine_layer(layer, x, calls[visit.layer], programs[-1].forms if programs else {}))
        except RemovalError:
            if not programs:
                _refuse_second_result(module, anatomy, inputs)
            raise
    return tuple(programs)


def _begin(
    module: Any, anatomy: Anatomy, inputs: dict[str, Any], width: int
) -> tuple[LayerAnatomy, tuple[LayerCall, ...]]:
    """See in what form the first layer answers, and with what each layer is called besides the residual stream.

    Raises:
        RemovalError: there is not one residual stream alone that layers hand on.
    """
    name, met = type(module).__name__, [layer for layer in anatomy.layers if layer.kinds]
    # 1) the first layer's weights are needed to see in what form layers answer, and that to reach the others
    with refusing(module, "given text alone", "lowmem-layers scores text, which this model does not take alone"):
        hidden, call = first_call(module, met, inputs)
    shape = tuple(hidden.shape)
    if shape != (_ROWS, _TOKENS, width):
        several = prod(shape) // (_ROWS * _TOKENS * width)
        if several > 1 and prod(shape) == several * _ROWS * _TOKENS * width:
            why = f"it has {several} residual streams"
        elif shape[0] == _ROWS and shape[1] > _TOKENS:
            why = f"it puts {shape[1] - _TOKENS} tokens of its own in front of the text's"
        else:
            why = "they are not rows of tokens"
        raise RemovalError(
            f"{name}: its layers are given states of shape {shape} for {_ROWS} rows of {_TOKENS} tokens and a width of "
            f"{width}: {why}",
            "only a single residual stream of the text's own tokens can be taken apart",
        )
    layer = _with_forms(met[0], hidden, call)
    # 2) nothing that earlier layers made but the stream goes into a layer
    layers = [replace(each, answer=layer.answer) for each in anatomy.layers]
    calls, shifted = (prologue(module, layers, inputs, shift=shift).calls for shift in (0.0, 1.0))
    reading = [number for number, pair in enumerate(zip(calls, shifted, strict=True)) if not _is_same(*pair)]
    if reading:
        raise RemovalError(
            f"{name}: decoder layer {reading[0]} reads states of earlier layers beside the residual stream",
            "what it reads would change with every removal before it; only layers that read the residual stream alone "
            "can be taken apart",
        )
    return layer, calls


def _refuse_second_result(module: Any, anatomy: Anatomy, inputs: dict[str, Any]) -> None:
    """Look for a deeper reason why a layer is no sum: a second result that layers hand on (Zaya's routers read it).

    Raises:
        RemovalError: there is one.
    """
    met = [layer for layer in anatomy.layers if layer.kinds]
    if len(met) > 1 and (beside := handed_beside(module, met, inputs)) is not None:
        raise RemovalError(
            f"{type(module).__name__}: each decoder layer hands a second result (of shape {tuple(beside.shape)}) on to "
            "the next one, beside the residual stream",
            "what a removed sublayer would hand on there has no meaning: no exact removal",
        )


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether a layer is called with the same twice: tensors are compared number by number."""
    if isinstance(one, LayerCall):
        return _is_same((one.args, one.kwargs), (other.args, other.kwargs))
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    return True


def _with_forms(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> LayerAnatomy:
    """See in which form the layer and its sublayers' modules hand back their output. Shapes: `x` (B, T, D)."""
    seen: dict[str, Answer] = {}
    names = (*layer.attention, *layer.feed_forward)
    parts = {"": layer.layer} | {name: layer.layer.get_submodule(name) for name in names}
    handles = [
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: Answer.seen_in(out)}))
        for name, part in parts.items()
    ]
    try:
        layer.layer(x.clone(), *call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    answer = seen.pop("", Answer())
    return replace(layer, answers=seen, answer=answer)


def _examine_layer(
    layer: LayerAnatomy, x: torch.Tensor, call: LayerCall, hints: Mapping[str, BranchForm | None]
) -> LayerProgram:
    """Work out how one layer is driven, or refuse it. Shapes: `x` (B, T, D)."""
    # 1) with its sublayers removed, a layer leaves its input as it is or scales its channels, or it is known what stays
    with layer_without(layer, "attn", "ffn"):
        output = run_layer(layer, x.clone(), call)
        scale = scale_of(output, x)
        if scale is None and (stays := what_stays(layer, x, call)):
            return LayerProgram(layer, {}, parallel=False, whole=stays)
    if scale is None:
        raise RemovalError(
            f"{type(layer.layer).__name__}: with its sublayers removed a layer still changes its input "
            f"(by up to {(output - x).abs().max().item():.3g}), and not by a norm alone",
            "it does more to the residual stream than adding to it and norming it, so that removing a sublayer has no "
            "single meaning",
        )
    # 2) the form of each branch; most often that of the layer before
    layer = replace(layer, scale=scale)
    forms = {role: find_form(layer, role, x, call, hints.get(role)) for role in layer.roles}
    # 3) the layer's output is that of its sublayers put together one after the other, or side by side
    whole = run_layer(layer, x.clone(), call)
    in_turn = side_by_side = x
    for role in layer.roles:
        in_turn = in_turn + branch_output(layer, role, forms[role], in_turn, call)
        side_by_side = side_by_side + branch_output(layer, role, forms[role], x, call)
    candidates = [candidate * scale for candidate in (in_turn, side_by_side)]
    gaps = [(candidate - whole).float().norm() / (whole - x).float().norm() for candidate in candidates]
    if not min(gaps) < (1e-4 if x.dtype.itemsize >= 4 else 3e-2):
        if len(layer.attention) > 1 and len(layer.roles) > 1:
            return LayerProgram(layer, {}, parallel=False, whole=_TOGETHER)
        raise RemovalError(
            f"{type(layer.layer).__name__}: a layer's output is not its input plus what its sublayers add "
            f"(relative gap {min(gaps):.2g})",
            "only layers that add their sublayers to the residual stream, in turn or in parallel, can be taken apart",
        )
    mixing = "ffn" in layer.roles and _mixes_tokens(lambda y: branch_output(layer, "ffn", forms["ffn"], y, call), x)
    return LayerProgram(layer, forms, parallel=bool(gaps[1] < gaps[0]), ffn_mixes=mixing)


def _mixes_tokens(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Tell whether what happens at a row's first token changes others' outputs. Shapes: `x` (B, T, D)."""
    changed = x.clone()
    changed[:, 0] = -x[:, 0].flip(-1)
    before, after = function(x)[:, 1:].float(), function(changed)[:, 1:].float()
    return bool((after - before).norm() > 1e-2 * before.norm())
