"""What a decoder layer still does when its sublayers are removed.

Most layers then give back their input, or its channels scaled. In post-norm layers, x → norm(x + f(x)), and in those
that norm the residual stream in front of a sublayer (MiniMax), the norm is no part of the sublayer: removing f takes
its contribution away and leaves the norm in place, x → norm(x). The same holds of what a layer adds to the stream from
embeddings of its own. Which of them it is, is found by trial: silence these modules, and nothing else may be left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.accelerators import to_float64
from lowmem_layers.model.anatomy.branches import run_layer
from lowmem_layers.model.anatomy.dissection import LayerAnatomy
from lowmem_layers.model.anatomy.forward import LayerCall

OWN_INPUT_STAYS = "what a layer does with embeddings beside its sublayers stays when these are removed"
NORM_STAYS = "a layer's norm of the residual stream stays when its sublayers are removed: x becomes norm(x)"
_OWN_INPUT = re.compile(r"per_layer_projection|pre_ln")  # Gemma 4's embeddings for each layer; RWKV's embedding norm


def what_stays(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> str:
    """Say what a layer whose sublayers are removed does to its input. Return an empty text where it is not known.

    Shapes: `x` (B, T, D).
    """
    own = {child: name == "pre_ln" for name, child in layer.layer.named_children() if _OWN_INPUT.fullmatch(name)}
    for words, modules in ((OWN_INPUT_STAYS, own), (NORM_STAYS, dict.fromkeys(_norms_of(layer, x, call), True))):
        if modules:
            with _silenced(modules):
                if scale_of(run_layer(layer, x.clone(), call), x) is not None:
                    return words
    return ""


def scale_of(output: torch.Tensor, x: torch.Tensor) -> Any:
    """Tell by which number each channel of `x` was multiplied (1.0 where nothing was done; None: it was not only that).

    Shapes: `output` and `x` (B, T, D), the result (D,).
    """
    if torch.equal(output, x):
        return 1.0
    wide, whole = to_float64(x), to_float64(output)
    scale = (whole * wide).sum((0, 1)) / (wide**2).sum((0, 1))  # (D,), least squares
    scale = scale.to(x)
    is_all = torch.allclose(output, x * scale, rtol=16 * torch.finfo(x.dtype).eps, atol=0.0)
    return scale if is_all and scale.all() else None


def _norms_of(layer: LayerAnatomy, x: torch.Tensor, call: LayerCall) -> list[nn.Module]:
    """List the modules that norm the residual stream of a layer, as it is now, by what they do to it.

    A norm gives the same for a state four times as large, and something else for the negative one. Shapes: `x`
    (B, T, D).
    """
    given: dict[nn.Module, torch.Tensor] = {}

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (
            len(args) == 1
            and isinstance(output, torch.Tensor)
            and output.shape == x.shape == getattr(args[0], "shape", None)
        ):
            given[module] = args[0]

    parts = [part for part in layer.layer.modules() if next(part.children(), None) is None]
    handles = [part.register_forward_hook(see) for part in parts]
    try:
        run_layer(layer, x.clone(), call)
    finally:
        for handle in handles:
            handle.remove()

    def is_norm(module: nn.Module, state: torch.Tensor) -> bool:
        one, larger, negative = (module(factor * state).float() for factor in (1.0, 4.0, -1.0))
        return bool((larger - one).norm() < 1e-2 * one.norm() < (negative - one).norm())

    return [module for module, state in given.items() if is_norm(module, state)]


@contextmanager
def _silenced(modules: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Let modules give zeros, or (where True) what they are given, for the length of a `with` block."""

    def quiet(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return args[0] if modules[module] else torch.zeros_like(output)

    handles = [module.register_forward_hook(quiet) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
