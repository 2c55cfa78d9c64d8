"""The parts of a model's own forward pass before and behind its decoder layers.

Masks, rotary embeddings and position arguments differ from layer to layer and from family to family, and so do final
norms, logit scales and softcaps. So nothing of it is written again here: the model's own forward runs with its
decoder layers standing in as pass-throughs, once to learn what each layer is called with, and once to get logits from
a given state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lowmem_layers.model.anatomy.dissection import LayerAnatomy


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
    """Run the model up to its first decoder layer; return the hidden state (B, T, D) and that layer's call."""
    seen: list[tuple[torch.Tensor, LayerCall]] = []

    def stop(*args: Any, **kwargs: Any) -> None:
        seen.append(_split(args, kwargs))
        raise _Captured

    with _stand_in([layers[0].layer], [stop]):
        try:
            module(**inputs, use_cache=False)
        except _Captured:
            return seen[0]
    raise AssertionError("the model's forward never reached its first decoder layer")


def prologue(module: nn.Module, layers: Sequence[LayerAnatomy], inputs: dict[str, Any]) -> Prologue:
    """Run the model's own forward on `inputs` with pass-throughs for layers, and keep what each layer is called with.

    The head runs on one position only (`logits_to_keep`) where the family knows that argument.
    """
    seen: list[tuple[torch.Tensor, LayerCall]] = []

    def record(returns_tuple: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, call = _split(args, kwargs)
            seen.append((hidden, call))
            return (hidden, None) if returns_tuple else hidden

        return forward

    with _stand_in([a.layer for a in layers], [record(a.layer_returns_tuple) for a in layers]), _idle_head(module):
        module(**inputs, use_cache=False)
    return Prologue(seen[0][0], tuple(call for _, call in seen))


def final_hidden(module: nn.Module, layers: Sequence[LayerAnatomy], states: torch.Tensor) -> torch.Tensor:
    """Bring states behind the last layer to what the output embedding is given (final norm and all).

    Shapes: `states` (S, D) → (S, D').
    """
    seen: list[torch.Tensor] = []
    with _idle_head(module, seen.append):
        _run_on(module, layers, states)
    return seen[0][:, 0]


def own_logits(module: nn.Module, layers: Sequence[LayerAnatomy], states: torch.Tensor) -> torch.Tensor:
    """Get logits from states behind the last layer, by the model's own head path. Shapes: (S, D) → (S, V)."""
    return _run_on(module, layers, states).logits[:, 0]


def _run_on(module: nn.Module, layers: Sequence[LayerAnatomy], states: torch.Tensor) -> Any:
    """Run the model's forward with every layer handing on `states`, one position a row (so no length limit applies)."""
    given = states[:, None]

    def hand_on(returns_tuple: bool) -> Callable[..., Any]:
        return lambda *args, **kwargs: (given, None) if returns_tuple else given

    ids = torch.zeros(len(states), 1, dtype=torch.long, device=states.device)
    with _stand_in([a.layer for a in layers], [hand_on(a.layer_returns_tuple) for a in layers]):
        return module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


@contextmanager
def _idle_head(module: Any, see: Callable[[torch.Tensor], None] = lambda hidden: None) -> Iterator[None]:
    """Let the output embedding return one column instead of the whole vocabulary, and show what it is given."""
    head = module.get_output_embeddings()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        see(hidden)
        return hidden[..., :1]

    with _stand_in([head], [forward]):
        yield


@contextmanager
def _stand_in(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward for the length of a `with` block; the modules themselves stay where they are."""
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.forward = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, LayerCall]:
    """Separate the hidden state from the rest of a layer's arguments."""
    if args:
        return args[0], LayerCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerCall((), rest)
