"""A GPU made of shapes: torch's fake tensors that say they lie on `cuda:0`, on a build without CUDA.

Nothing is computed. What is seen: tensors left on the wrong device (a mask, positions, a weight), shapes, and every
transfer between host and device, since each of them may make the host wait. What is not seen: values and streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_ASIDE = {"_to_copy", "copy_", "_local_scalar_dense", "nonzero", "equal", "is_nonzero"}
aten = torch.ops.aten
_ATTENTION = nn.functional.scaled_dot_product_attention


class Transfers(TorchDispatchMode):
    """Write down every operation that moves data between host and device, or makes the host wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _ASIDE:
            kinds = {each.device.type for each in (*args, result) if isinstance(each, torch.Tensor)}
            waits = name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero") and "cuda" in kinds
            if waits or {"cpu", "cuda"} <= kinds:
                self.seen.append(name)
        return result


class NoFloat64(TorchDispatchMode):
    """Write down every operation that makes a number of 64 bits on a kind of device that has none."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        for each in made:
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64 and each.device.type == self.device:
                self.seen.append(func.overloadpacket.__name__)
        return result


def to_fake_cuda(
    module: nn.Module, mode: FakeTensorMode, dtype: torch.dtype = torch.bfloat16, device: str = "cuda:0"
) -> None:
    """Replace all parameters and buffers by fakes of the same shape on a device; shared ones stay shared.

    Weights are said to be of `dtype`: torch's grouped products on a GPU take bfloat16 alone.
    """
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            on_host = mode.from_tensor(tensor.detach())
            with mode:
                is_weight = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
                made[id(tensor)] = (on_host.to(device, dtype if is_weight else tensor.dtype), tensor)
        return made[id(tensor)][0]

    for each in module.modules():
        for name, weight in list(each._parameters.items()):
            if weight is not None:
                moved = fake(weight)
                with mode:
                    each._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in list(each._buffers.items()):
            if buffer is not None:
                each._buffers[name] = fake(buffer)


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Let torch believe in a GPU for the length of a `with` block; enter the mode that it gives to compute."""
    patches = {
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.mem_get_info": lambda *_: (16 << 30, 16 << 30),
        "torch.nn.functional.scaled_dot_product_attention": attention_on_cuda,
    }
    methods = {"__getitem__": _getitem, "__setitem__": _setitem, "contiguous": _contiguous,
               "copy_": _copy, "__invert__": _invert}  # fmt: skip
    with ExitStack() as stack:
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        for name, value in methods.items():
            stack.enter_context(mock.patch.object(FakeTensor, name, value, create=True))
        yield FakeTensorMode()


def attention_on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Choose the kernel that torch chooses on CUDA where cuDNN's is off: the memory-efficient one, whatever the mask.

    A build for CPUs would choose the one of many steps, which keeps float32 scores of all heads.
    Source: torch 2.13, aten/native/transformers/attention.cpp.
    """
    takes = query.shape[1] == key.shape[1] and query.dtype != torch.float64  # heads that keys share are refused
    if query.device.type != "cuda" or not takes or enable_gqa:
        return _ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            additive = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = additive.masked_fill_(attn_mask.logical_not(), float("-inf"))
        width = attn_mask.shape[-1]
        if any(stride % 8 for stride in attn_mask.stride()[:-1]):
            attn_mask = nn.functional.pad(attn_mask, (0, 8 - width % 8))[..., :width]
        attn_mask = attn_mask.expand(*query.shape[:2], *attn_mask.shape[-2:])
    found = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )
    return found[0]


def _contiguous(self: torch.Tensor, **_: Any) -> torch.Tensor:
    return self if self.is_contiguous() else aten.clone(self, memory_format=torch.contiguous_format)


def _copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return aten.copy_(self, source, non_blocking)


def _invert(self: torch.Tensor) -> torch.Tensor:
    return aten.bitwise_not(self)


def _getitem(self: torch.Tensor, index: Any) -> torch.Tensor:
    """Index by the operations that Python indexing is made of, without the guard that needs a real device."""
    result, advanced = _basic(self, index)
    return aten.index.Tensor(result, advanced) if advanced is not None else result


def _setitem(self: torch.Tensor, index: Any, value: Any) -> None:
    target, advanced = _basic(self, index)
    if not isinstance(value, torch.Tensor):
        value = torch.full((), value, dtype=self.dtype, device=self.device)
    if value.device != self.device and value.dim():
        raise RuntimeError(f"assigned from {value.device} to {self.device}")
    if advanced is not None:
        aten.index_put_(target, advanced, value)
    else:
        aten.copy_(target, value.expand(target.shape) if value.dim() <= target.dim() else value)


def _basic(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None] | None]:
    """Apply numbers, slices, None and `...`; give the lists and tensors that are left, by dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not any(p is Ellipsis for p in parts):
        parts.append(Ellipsis)
    advanced: dict[int, torch.Tensor] = {}
    dim = 0
    for place, part in enumerate(parts):
        if part is Ellipsis:
            dim = tensor.dim() - sum(1 for each in parts[place + 1 :] if each is not None)
        elif part is None:
            tensor = tensor.unsqueeze(dim)
            dim += 1
        elif isinstance(part, slice):
            tensor = aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
            dim += 1
        elif isinstance(part, bool | int):
            tensor = aten.select.int(tensor, dim, int(part))
        else:
            each = part if isinstance(part, torch.Tensor) else torch.tensor(part).to(tensor.device)
            advanced[dim] = each
            dim += each.dim() if each.dtype == torch.bool else 1
    if not advanced:
        return tensor, None
    return tensor, [advanced.get(each) for each in range(max(advanced) + 1)]
