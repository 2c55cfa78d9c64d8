"""Take sublayers out of a model in place, and put the very same modules back.

Removing a sublayer drops its branch and keeps the skip connection: x + f(x) becomes x (paper, section 3). The stub
that stands in for f therefore returns fresh zeros, in the form in which the layer's code expects f's output. (An
`nn.Identity` would add the normalised input to the residual stream.) A few families hand the residual into the
sublayer and expect the sum back (BLOOM's, MPT's feed-forward): there the stub returns the residual as it came.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import LowmemLayersError, RemovalError
from lowmem_layers.model.anatomy.dissection import Anatomy, Answer, LayerAnatomy
from lowmem_layers.model.memory import is_machines_fault

_UNDRIVEN = "this family's layers cannot be driven one at a time; it can't be ablated exactly"


class Stub(nn.Module):
    """Stands in for a removed sublayer: returns zeros (or the residual) of the right shape, dtype and form."""

    def __init__(self, removed: nn.Module, answer: Answer, *, out_features: int | None = None) -> None:
        super().__init__()
        self._removed_class = type(removed)
        self._signature = inspect.signature(removed.forward)
        self._out_features = out_features
        self._answer = answer

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] (nobody sets it)
        """Name the removed module's class: a layer that asks for it (ERNIE 4.5 VL) must go the same way."""
        return self.__dict__.get("_removed_class", Stub)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs).arguments
        output = given.get("residual")
        if output is None:
            hidden = next(value for value in given.values() if isinstance(value, torch.Tensor))
            width = self._out_features or self._answer.width or hidden.shape[-1]
            output = hidden.new_zeros(*hidden.shape[:-1], width)  # fresh: some families add to it in place
        return self._answer.holding(output)


@contextmanager
def refusing(model: nn.Module, when: str, hint: str = _UNDRIVEN) -> Iterator[None]:
    """Turn whatever a model's own code raises while it is tested into a refusal of the model.

    Raises:
        RemovalError: an exception came out of the `with` block. Refusals, a lack of memory, a GPU that fails and a
            disk that cannot be read are raised as they are.
    """
    try:
        yield
    except (LowmemLayersError, OSError):
        raise
    except Exception as error:
        if is_machines_fault(error):
            raise
        first_line = (str(error).strip() or "no message").splitlines()[0]
        raise RemovalError(
            f"{type(model).__name__}: {when}, its own code raised {type(error).__name__}: {first_line}",
            hint,
        ) from error


@contextmanager
def without(anatomy: Anatomy, removed: Iterable[int]) -> Iterator[None]:
    """Remove the sublayers at the given player positions for the length of a `with` block.

    The modules are swapped in place and the very same objects come back, also after an exception.
    """
    chosen = [anatomy.players[position] for position in removed]
    with _swapped([(anatomy.layers[p.layer], p.role) for p in chosen]):
        yield


@contextmanager
def layer_without(layer: LayerAnatomy, *kinds: str) -> Iterator[None]:
    """Remove sublayers of one decoder layer, by their places (`attn`, `ffn`), for the length of a `with` block."""
    with _swapped([(layer, kind) for kind in kinds if kind in layer.roles]):
        yield


@contextmanager
def _swapped(targets: list[tuple[LayerAnatomy, str]]) -> Iterator[None]:
    kept: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for layer, kind in targets:
            names = layer.children_of(kind)
            modules: list[Any] = [layer.layer.get_submodule(name) for name in names]
            # where none was seen yet
            usual = Answer(2) if kind == "attn" and "attn" in layer.kinds else Answer()
            known = [Answer() if isinstance(module, nn.Linear) else usual for module in modules]
            answers = [layer.answers.get(name, each) for name, each in zip(names, known, strict=True)]
            if names == ("fc1", "fc2"):
                # Two matrices in the layer itself: the first only narrows, so that nothing is computed.
                widths = (1, modules[1].out_features)
                stubs = [Stub(m, Answer(), out_features=w) for m, w in zip(modules, widths, strict=True)]
            else:
                stubs = [Stub(m, answer) for m, answer in zip(modules, answers, strict=True)]
            for name, module, stub in zip(names, modules, stubs, strict=True):
                path, _, leaf = name.rpartition(".")
                parent = layer.layer.get_submodule(path)
                kept.append((parent, leaf, module))
                setattr(parent, leaf, stub)
        yield
    finally:
        for parent, name, module in reversed(kept):
            setattr(parent, name, module)
