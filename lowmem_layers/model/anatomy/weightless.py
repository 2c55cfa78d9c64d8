"""What is found of decoder layers before a weight is read, by running them without data (torch's meta device).

Whether a layer's sublayers act side by side, and what its feed-forward takes while it computes: both decide how much
memory a tile needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowmem_layers.model.anatomy.dissection import Anatomy, LayerAnatomy
from lowmem_layers.model.anatomy.removal import layer_without

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_TOKENS = 64
# what a layer raises that needs more than its hidden states, or an operation that needs data
_CANNOT_RUN = (TypeError, ValueError, AttributeError, RuntimeError, LookupError, StopIteration)


class _FeedForwardReached(Exception):
    """Ends a layer's forward where its feed-forward begins."""


def foresee_parallel(anatomy: Anatomy, hidden: int, dtype: torch.dtype) -> bool:
    """Tell from a model without weights whether attention and feed-forward of any layer act side by side.

    A stub stands in for attention and marks its output as one that gradients are wanted of: where the feed-forward's
    input carries the mark, it depends on attention, and the two act one after the other.
    """
    for layer in anatomy.layers:
        if len(layer.roles) < 2:
            continue
        reached: list[bool] = []

        def mark(_module: nn.Module, _args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output  # (B, T, D)
            marked = first.detach().clone().requires_grad_()
            return (marked, *output[1:]) if isinstance(output, tuple) else marked

        def stop(_module: nn.Module, args: Any, kwargs: Any, reached: list[bool] = reached) -> None:
            given = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            reached.append(given.requires_grad)
            raise _FeedForwardReached

        with layer_without(layer, "attn"), torch.inference_mode(False), torch.enable_grad():
            for name in layer.attention:  # the hooks go with the stubs
                layer.layer.get_submodule(name).register_forward_hook(mark)
            handle = layer.layer.get_submodule(layer.feed_forward[0]).register_forward_pre_hook(stop, with_kwargs=True)
            try:
                _forward(layer, 2, hidden, dtype)()
            except _FeedForwardReached:
                pass
            except _CANNOT_RUN:
                # Such a layer is taken for a parallel one: its states take twice the memory, and what is foreseen must
                # never be less than what is taken.
                reached.clear()
            finally:
                handle.remove()
        if not any(reached):
            return True
    return False


def feed_forward_numbers(anatomy: Anatomy, hidden: int) -> int | None:
    """Count what a layer without its attention keeps at most for a token, in numbers of the states' type.

    Each kind of layer runs once in bfloat16, the type that all kernels take. None: it cannot be told of a layer.
    """
    most: dict[Any, int] = {}
    for layer in anatomy.layers:
        alike = type(layer.layer), *((name, value.shape) for name, value in layer.layer.named_parameters())
        if "ffn" not in layer.roles or alike in most:
            continue
        kept = _Kept()
        try:
            with layer_without(layer, "attn"), torch.inference_mode(False), torch.no_grad():
                forward = _forward(layer, _TOKENS, hidden, torch.bfloat16)
                with kept:
                    forward()
        except _CANNOT_RUN:
            return None
        most[alike] = -(-kept.most_bytes // (_TOKENS * torch.bfloat16.itemsize))
    return max(most.values(), default=0)


def _forward(layer: LayerAnatomy, n_tokens: int, hidden: int, dtype: torch.dtype) -> Callable[[], Any]:
    """Prepare a layer's own forward on a row without data, with nothing for what goes to attention alone."""
    weightless = {
        name: torch.empty(value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device="meta")
        for name, value in (*layer.layer.named_parameters(), *layer.layer.named_buffers())
    }
    # Masks, positions and the like go to attention, and the stub in its place does not look at them.
    needed = list(inspect.signature(layer.layer.forward).parameters.values())[1:]
    nothing = {p.name: None for p in needed if p.default is p.empty and p.kind not in _VARIADIC}
    x = torch.zeros(1, n_tokens, hidden, dtype=dtype, device="meta")
    return partial(functional_call, layer.layer, weightless, (x,), nothing)


class _Kept(TorchDispatchMode):
    """Adds up the bytes of all that is made in a `with` block and still needed, after every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.most_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        for leaf in tree_leaves(made):
            if torch.is_tensor(leaf) and (storage := _storage(leaf))._cdata not in given:  # views are no new memory
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most_bytes = max(self.most_bytes, sum(size for _, size in self._alive.values()))
        return made


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()
