"""Examine a loaded model once, layer by layer, before anything is believed about it.

Each decoder layer is visited once with a few tokens: in what form it and its feed-forward hand back their output;
whether the output equals the input when both sublayers are removed (a model that fails cannot be ablated exactly and
is refused); how each sublayer can be computed alone (`branches`); and whether the two act one after the other on the
residual stream or side by side on the layer's input (GPT-J, GPT-NeoX, Phi, Falcon, Cohere).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.branches import Recipe, branch_output, find_recipe, run_layer
from lowmem_layers.model.anatomy.dissection import Anatomy, LayerAnatomy
from lowmem_layers.model.anatomy.forward import LayerCall, first_call, prologue
from lowmem_layers.model.anatomy.removal import layer_without
from lowmem_layers.model.homes.store import LayerStore, Visit

BOTH = frozenset({"attn", "ffn"})
_ROWS, _TOKENS = 3, 5


@dataclass(frozen=True)
class LayerProgram:
    """How one decoder layer is driven.

    Units: `macs` are multiply-adds a token, by kind (`attn`, `ffn`); `widest` numbers a token of its widest product.
    """

    anatomy: LayerAnatomy
    recipes: dict[str, Recipe | None]
    parallel: bool
    macs: dict[str, int]
    widest: int


def examine(module: nn.Module, anatomy: Anatomy, store: LayerStore) -> tuple[LayerProgram, ...]:
    """Visit every layer once and work out its program.

    Raises:
        RemovalError: removing both sublayers of a layer does not leave its input unchanged, or its output is not its
            input plus what each sublayer adds.
    """
    device = next(module.parameters()).device
    ids = torch.arange(_ROWS * _TOKENS, device=device).view(_ROWS, _TOKENS) + 3
    present = torch.ones_like(ids)
    present[-1, -1] = 0  # so that every family hands a mask to its layers, and it can be seen where it goes
    inputs = {"input_ids": ids, "attention_mask": present}
    programs: list[LayerProgram] = []
    calls: tuple[LayerCall, ...] = ()
    visits = [Visit(index, BOTH) for index in range(len(anatomy.layers))]
    for visit in store.sweep(visits):
        layer = anatomy.layers[visit.layer]
        if not programs:
            layer = _with_forms(layer, *first_call(module, anatomy.layers, inputs))
            form = {"layer_returns_tuple": layer.layer_returns_tuple}
            calls = prologue(module, [replace(each, **form) for each in anatomy.layers], inputs).calls
        x = _probe_states(layer, module, visit.layer)
        layer = _with_forms(layer, x, calls[visit.layer])
        programs.append(_program(layer, x, calls[visit.layer], programs[-1] if programs else None))
    return tuple(programs)


def _probe_states(layer: LayerAnatomy, module: Any, index: int) -> torch.Tensor:
    """Draw residual states of unit scale. Shapes: (3, 5, D)."""
    embedding = module.get_input_embeddings().weight
    width = _hidden_size(module, embedding.shape[-1])
    generator = torch.Generator().manual_seed(index)
    x = torch.randn(_ROWS, _TOKENS, width, generator=generator)
    return x.to(device=embedding.device, dtype=embedding.dtype)


def _hidden_size(module: Any, fallback: int) -> int:
    config = module.config.get_text_config(decoder=True)
    return getattr(config, "hidden_size", fallback)


def _with_forms(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> LayerAnatomy:
    """See in which form the layer and its feed-forward hand back their output."""
    seen: dict[str, bool] = {}
    parts = {"layer": layer.layer, "ffn": getattr(layer.layer, layer.feed_forward[-1])}
    handles = [
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: isinstance(out, tuple)}))
        for name, part in parts.items()
    ]
    try:
        layer.layer(x.clone(), *call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return replace(layer, ffn_returns_tuple=seen["ffn"], layer_returns_tuple=seen["layer"])


def _program(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall, previous: LayerProgram | None) -> LayerProgram:
    _refuse_unless_identity(layer, x, call)
    hints: dict[str, Recipe | None] = previous.recipes if previous else {"attn": None, "ffn": None}
    recipes = {kind: find_recipe(layer, kind, x, call, hints[kind]) for kind in ("attn", "ffn")}
    parallel = _acts_in_parallel(layer, recipes, x, call)
    macs = {kind: _macs(layer, kind) for kind in ("attn", "ffn")}
    return LayerProgram(layer, recipes, parallel, macs, _widest(layer))


def _refuse_unless_identity(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> None:
    with layer_without(layer, "attn", "ffn"):
        output = run_layer(layer, x.clone(), call)
    if not torch.equal(output, x):
        gap = (output - x).abs().max().item()
        raise RemovalError(
            f"{type(layer.layer).__name__}: with both sublayers removed a layer still changes its input "
            f"(by up to {gap:.3g})",
            "it does more to the residual stream than adding to it (a norm after the sum, say): no exact removal",
        )


def _acts_in_parallel(layer: LayerAnatomy, recipes: dict[str, Recipe | None], x: torch.Tensor, call: LayerCall) -> bool:
    """Compare the layer's output with its sublayers' outputs put together one after the other, and side by side."""
    whole = run_layer(layer, x.clone(), call)
    attended = x + branch_output(layer, "attn", recipes["attn"], x, call)
    in_turn = attended + branch_output(layer, "ffn", recipes["ffn"], attended, call)
    abreast = attended + branch_output(layer, "ffn", recipes["ffn"], x, call)
    gaps = [(candidate - whole).float().norm() / (whole - x).float().norm() for candidate in (in_turn, abreast)]
    if not min(gaps) < (1e-4 if x.dtype.itemsize >= 4 else 3e-2):
        raise RemovalError(
            f"{type(layer.layer).__name__}: a layer's output is not its input plus what its two sublayers add "
            f"(relative gap {min(gaps):.2g})",
            "only layers that add their sublayers to the residual stream, in turn or in parallel, can be taken apart",
        )
    return bool(gaps[1] < gaps[0])


def _macs(layer: LayerAnatomy, kind: str) -> int:
    """Count the weights a token meets in a sublayer: all of a dense one, the chosen share of a mixture's experts."""
    total = 0
    for child in layer.children_of(kind):
        for name, parameter in getattr(layer.layer, child).named_parameters():
            share = _chosen_share(layer.layer) if "experts" in name.split(".") and "shared" not in name else 1.0
            total += int(parameter.numel() * share) if parameter.dim() > 1 else 0
    return total


def _widest(layer: LayerAnatomy) -> int:
    """Count the numbers a token has at its widest, in all the experts it visits."""
    kinds = ("attn", "ffn")
    children = [getattr(layer.layer, child) for kind in kinds for child in layer.children_of(kind)]
    weights = [weight for child in children for weight in child.parameters() if weight.dim() > 1]
    wide = [max(w.shape[-2:]) * (w.shape[0] * _chosen_share(layer.layer) if w.dim() == 3 else 1) for w in weights]
    return round(max(wide, default=1))


def _chosen_share(layer: nn.Module) -> float:
    for module in layer.modules():
        config = getattr(module, "config", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        if chosen is not None:
            total = next(
                getattr(config, n)
                for n in ("num_local_experts", "num_experts", "n_routed_experts")
                if hasattr(config, n)
            )
            return chosen / total
    return 1.0
