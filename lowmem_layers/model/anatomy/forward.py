"""The parts of a model's own forward pass before and behind its decoder layers.

Masks, rotary embeddings and position arguments differ from layer to layer and from family to family, and so do final
norms, logit scales and softcaps. So nothing of it is written again here: the model's own forward runs with its
decoder layers standing in as pass-throughs, once to learn what each layer is called with, and once to get logits from
a given state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.dissection import Answer, LayerAnatomy

WIDE_ROWS = 1024
"""So many tokens' output embeddings are turned to float32 at once."""


_WIDE_SUMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)  # `out_dtype` came with torch 2.8


@dataclass(frozen=True)
class LayerCall:
    """What one decoder layer is called with, besides the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Prologue:
    """What stands in front of the layers. Shapes: `hidden` (B, T, D); `calls` one a decoder layer."""

    hidden: torch.Tensor
    calls: tuple[LayerCall, ...]


class _Captured(Exception):
    """Ends a forward pass at its first decoder layer."""


def first_call(module: nn.Module, layers: Sequence[LayerAnatomy], inputs: dict[str, Any]) -> tuple[Any, LayerCall]:
    """Run the model up to its first decoder layer; return the hidden state (B, T, D) and that layer's call.

    Raises:
        RemovalError: the model's forward does not call its first decoder layer.
    """
    seen: list[tuple[torch.Tensor, LayerCall]] = []

    def stop(*args: Any, **kwargs: Any) -> None:
        seen.append(split_call(args, kwargs))
        raise _Captured

    with _stand_in({layers[0].layer: stop}), contextlib.suppress(_Captured):
        module(**inputs, use_cache=False)
    if not seen:
        raise RemovalError(
            f"{type(module).__name__}: its forward never calls its first decoder layer",
            "lowmem-layers takes decoder-only models whose layers stand in one list",
        )
    return seen[0]


def handed_beside(module: nn.Module, layers: Sequence[LayerAnatomy], inputs: dict[str, Any]) -> torch.Tensor | None:
    """Give what the first decoder layer hands to the second one besides the hidden state; None where it is nothing.

    `layers` are those that text goes through; the first one's weights must be there.
    """
    answers: list[Any] = []
    handle = layers[0].layer.register_forward_hook(lambda _m, _i, output: answers.append(output))
    try:
        call = first_call(module, layers[1:], inputs)[1]
    finally:
        handle.remove()
    given = [*call.args, *call.kwargs.values()]
    beside = answers[0][1:] if isinstance(answers[0], tuple | list) else ()
    return next((each for each in beside if isinstance(each, torch.Tensor) and any(each is one for one in given)), None)


def prologue(module: Any, layers: Sequence[LayerAnatomy], inputs: dict[str, Any], *, shift: float = 0.0) -> Prologue:
    """Run the model's own forward with pass-throughs for layers, and keep what each layer is called with.

    A layer without sublayers is one that text passes by: its call is empty. `shift` is added to the state by every
    pass-through: what other arguments change with it are made of layers' states.

    Raises:
        RemovalError: layers are called more than once, or not at all.
    """
    seen: list[tuple[torch.Tensor, LayerCall]] = []

    def record(answer: Answer) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = split_call(args, kwargs)
            seen.append((hidden, call))
            return answer.holding(hidden + shift if shift else hidden)

        return forward

    stand_ins = {layer.layer: record(layer.answer) for layer in layers}
    # Nobody reads these logits: the output embedding returns one column in place of the whole vocabulary.
    stand_ins[module.get_output_embeddings()] = lambda hidden: hidden[..., :1]
    with _stand_in(stand_ins):
        module(**inputs, use_cache=False)
    n_layers = sum(bool(layer.kinds) for layer in layers)
    if len(seen) != n_layers:
        raise RemovalError(
            f"{type(module).__name__}: one forward pass of text calls its {n_layers} decoder layers {len(seen)} times",
            "layers that are run in a loop, or only beside a picture, cannot be taken apart",
        )
    calls = iter(call for _, call in seen)
    return Prologue(seen[0][0], tuple(next(calls) if layer.kinds else LayerCall((), {}) for layer in layers))


def own_logits(module: Any, layers: Sequence[LayerAnatomy], states: torch.Tensor) -> torch.Tensor:
    """Get logits from states behind the last layer, by the model's own head path; see `wide_head`.

    Shapes: (S, D) → (S, V).
    """
    given = states[:, None]  # (S, 1, D): one position a row, so that no length limit applies

    def hand_on(answer: Answer) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer.holding(given)

    ids = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)  # (S, 1)
    with wide_head(module), _stand_in({layer.layer: hand_on(layer.answer) for layer in layers}):
        return module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 0]


@contextlib.contextmanager
def wide_head(module: Any) -> Iterator[None]:
    """Give a model that computes in 16 bits an output embedding with float32 logits, for the length of a `with` block.

    Logits of 10 to 40 rounded to bfloat16 are up to 0.12 apart: choices tie exactly, and log-likelihoods of long
    continuations are off by more than a nat. States and weights stay as they are; only the sums are not rounded.
    """
    if not has_wide_head(module):
        yield
        return
    head = module.get_output_embeddings()
    with _stand_in({head: lambda hidden: float32_product(hidden, head.weight, head.bias)}):
        yield


def has_wide_head(module: Any) -> bool:
    """Tell whether a model's logits are computed in float32 though its states have 16 bits."""
    head = module.get_output_embeddings()
    return type(head) is nn.Linear and head.weight.dtype.itemsize == 2


def float32_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply 16-bit numbers, and add up and return in float32. Shapes: (…, D), (V, D), (V,) → (…, V)."""
    rows = hidden.flatten(0, -2)  # (R, D)
    if weight.device.type == "cuda" and torch.version.hip is None and _WIDE_SUMS:
        logits = torch.mm(rows, weight.t(), out_dtype=torch.float32)  # (R, V)
    else:
        wide = rows.float()
        logits = wide.new_empty(len(rows), len(weight))
        for low in range(0, len(weight), WIDE_ROWS):  # no float32 copy of the whole embedding
            piece = slice(low, low + WIDE_ROWS)
            logits[:, piece] = wide @ weight[piece].float().t()
    logits = logits if bias is None else logits + bias
    return logits.unflatten(0, hidden.shape[:-1])


@contextlib.contextmanager
def _stand_in(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward for the length of a `with` block; the modules themselves stay where they are."""
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, LayerCall]:
    """Separate the hidden state from the rest of a layer's arguments."""
    if args:
        return args[0], LayerCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerCall((), rest)
