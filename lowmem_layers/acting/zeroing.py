"""Silence a sublayer in place: its branch's last matrices, and their biases, become zeros.

Which they are is known by name, and believed only where the layer's own forward then gives bit for bit what it gives
with the sublayer removed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.branches import run_layer
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import LayerAnatomy
from lowmem_layers.model.anatomy.forward import LayerCall, prologue
from lowmem_layers.model.anatomy.removal import layer_without

# The names of output projections in transformers' families; in mixtures they are those of a stack of all experts.
_LAST = re.compile(
    r"(.*\.)?(o_proj|out_proj|dense|c_proj|down_proj|w2|fc2|fc_out|dense_4h_to_h|output_linear|wo|proj_out)"
    r"(\.weight|\.bias|_bias)?|(.*\.)?output_linear\.bias"
)
_TOKENS = 5


def last_matrices(layer: LayerAnatomy, role: str) -> dict[str, nn.Parameter]:
    """List the parameters of a branch that its output is a sum of multiples of, by their names in the layer."""
    found: dict[str, nn.Parameter] = {}
    for child in layer.children_of(role):
        module = layer.layer.get_submodule(child)
        for key, parameter in module.named_parameters(prefix=child):
            if _LAST.fullmatch(key):
                found[key] = parameter
        # JetMoE adds a bias of its own behind its experts.
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter) and found:
            found.setdefault(f"{child}.bias", bias)
    return found


def probe_calls(model: DecoderModel) -> tuple[LayerCall, ...]:
    """Learn what each layer is called with for a few tokens. The resident weights must be there."""
    ids = torch.arange(_TOKENS)[None] + 3  # (1, T)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return prologue(model.module, model.anatomy.layers, inputs).calls


def zero_branches(layer: LayerAnatomy, roles: Sequence[str], call: LayerCall, hidden: int) -> None:
    """Zero the last matrices of a visited layer's branches, and see that each is silent now.

    Raises:
        RemovalError: the layer's output is not what it is without them.
    """
    found = {role: last_matrices(layer, role) for role in roles}
    weight = next(layer.layer.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _TOKENS, hidden, generator=generator).to(weight.dtype)  # (B, T, D)
    for group in found.values():
        for parameter in group.values():
            parameter.data.zero_()
    with layer_without(layer, *roles):
        expected = run_layer(layer, x.clone(), call)  # (B, T, D)
    output = run_layer(layer, x.clone(), call)
    if not torch.equal(output, expected):
        names = ", ".join(name for group in found.values() for name in group) or "none known"
        raise RemovalError(
            f"{type(layer.layer).__name__}: with its last matrices zeroed ({names}) a layer still differs from one "
            f"without {' and '.join(roles)} by up to {(output - expected).abs().max().item():.3g}",
            "this family cannot be written with single sublayers silenced; --form layers removes whole decoder layers",
        )
