"""What a device can do at best, and whether it computes right: each kernel that a run is made of, alone.

A run is never faster than these, so they are measured first: matrix products at the engine's own shapes, copies on the
device and both ways over the bus, reading a file, and unpacking weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from lowmem_layers.forecast.machine import rate_of, read_fresh_file
from lowmem_layers.model.accelerators import is_gpu, kind_of
from lowmem_layers.model.formats import FOUR_BIT, INT8, Packed, unpack

Shape = tuple[int, int, int]  # rows, inner, columns of a product

# On a CPU, and on a GPU of any kind:
_PIECE_BYTES = (64 << 20, 256 << 20)
_USUAL_PRODUCTS: tuple[tuple[Shape, ...], ...] = (
    ((1024, 576, 1536), (1024, 2048, 2048)),
    ((16384, 4096, 4096), (16384, 4096, 14336), (16384, 14336, 4096), (2048, 4096, 128256)),
)
_LARGEST_NF4_ERROR = 0.15  # of a block's largest number: half of the widest step between two of NF4's levels


@dataclass(frozen=True)
class Ceiling:
    """One speed. Units: `value` in what `unit` says: TFLOP/s, GB/s, or thousand millions of numbers a second."""

    what: str
    value: float
    unit: str


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, folder: Path, *, seconds: float = 0.3, products: Sequence[Shape] = ()
) -> Iterator[Ceiling]:
    """Time each kernel for about `seconds`. The file that is read lies in `folder`; numbers are random."""
    # 1) products: random numbers, since zeros draw less power and clock higher
    for rows, inner, columns in products or _USUAL_PRODUCTS[is_gpu(device)]:
        states = torch.randn(rows, inner, dtype=dtype, device=device)
        weight = torch.randn(columns, inner, dtype=dtype, device=device)
        each = 2 * rows * inner * columns
        rate = rate_of(lambda a=states, b=weight: torch.nn.functional.linear(a, b), device, seconds)
        yield Ceiling(f"product ({rows:,} × {inner:,}) · ({inner:,} × {columns:,})", rate * each / 1e12, "TFLOP/s")
        del states, weight
    # 2) memory: a copy on the device reads and writes; a sum of three states reads twice and writes
    n_bytes = _PIECE_BYTES[is_gpu(device)]
    here = torch.randint(0, 255, (n_bytes,), dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    rate = rate_of(lambda: there.copy_(here), device, seconds)
    yield Ceiling("copy on the device, read and written", 2 * n_bytes * rate / 1e9, "GB/s")
    x = torch.randn(n_bytes // dtype.itemsize // 2, dtype=dtype, device=device)
    y = torch.randn_like(x)
    rate = rate_of(lambda: x.add_(y), device, seconds)
    yield Ceiling("adding to states, read and written", 3 * x.numel() * dtype.itemsize * rate / 1e9, "GB/s")
    # 3) the bus
    if is_gpu(device) and kind_of(device).streams:
        host = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
        for what, source, target in (("host to device", host, there), ("device to host", there, host)):
            rate = rate_of(lambda a=source, b=target: b.copy_(a, non_blocking=True), device, seconds)
            yield Ceiling(f"{what}, pinned memory", n_bytes * rate / 1e9, "GB/s")
    # 4) the disk
    yield Ceiling("reading a file", read_fresh_file(folder) / 1e9, "GB/s")
    # 5) unpacking a weight of the engine's shape
    shape = (4096, 4096) if is_gpu(device) else (1024, 1024)
    for name, packed in (("NF4", random_nf4(shape, device)), ("int8", random_int8(shape, device))):
        out = torch.empty(shape, dtype=dtype, device=device)
        rate = rate_of(lambda p=packed, o=out: unpack(p, o), device, seconds)
        yield Ceiling(f"unpacking {name}", prod(shape) * rate / 1e9, "10⁹ numbers/s")


def random_nf4(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Packed:
    """Make NF4 codes without a weight: every code is equally likely, so that products behave as a model's do.

    Shapes: a weight of `shape`, whose rows have a length of about 1.
    """
    numbers = prod(shape)
    like = FOUR_BIT.pack(torch.randn(64))  # its table and settings
    codes = torch.randint(0, 256, (-(-numbers // 2), 1), dtype=torch.uint8, device=device)  # (n / 2, 1)
    scales = (0.5 + torch.rand(-(-numbers // 64), device=device)) * 1.7 * shape[-1] ** -0.5  # (n / 64,)
    parts = {"weight": codes, "absmax": scales, "quant_map": like.parts["quant_map"].to(device)}
    return Packed(FOUR_BIT, shape, parts, like.settings)


def random_int8(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Packed:
    """Make int8 codes without a weight. Shapes: as in `random_nf4`."""
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=device)
    scale = (0.5 + torch.rand(*shape[:-1], 1, device=device)) / 73 * shape[-1] ** -0.5  # (…, rows, 1)
    return Packed(INT8, shape, {"weight": codes, "scale": scale})


def check_kernels(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Compare a few kernels of a run with the CPU's; list what is wrong.

    A weight packed as NF4 on the CPU is unpacked on the device: equal to the CPU's unpacking to the bit, and near the
    weight itself. A product, a copy there and back.
    """
    generator, wrong = torch.Generator().manual_seed(0), []
    weight = torch.randn(96, 128, generator=generator)  # (rows, columns)
    packed = FOUR_BIT.pack(weight)
    there = packed.with_parts({name: part.to(device) for name, part in packed.parts.items()})
    # 1) unpacking
    found, expected = torch.empty(packed.shape, dtype=dtype, device=device), torch.empty(packed.shape, dtype=dtype)
    unpack(there, found)
    unpack(packed, expected)
    if not torch.equal(found.cpu(), expected):
        wrong.append(f"NF4 is unpacked differently than on the CPU, by up to {_gap(found, expected):.3g}")
    limit = _LARGEST_NF4_ERROR * weight.abs().max().item()
    if not _gap(expected, weight) <= limit:
        wrong.append(f"packed as NF4 and unpacked, a weight is off by {_gap(expected, weight):.3g} of {limit:.3g}")
    # 2) a product, in float64 on the CPU as the truth
    states = torch.randn(64, 128, generator=generator).to(dtype)  # (rows, D)
    product = torch.nn.functional.linear(states.to(device), found)  # (rows, columns)
    truth = states.double() @ found.cpu().double().t()
    if not _gap(product, truth) <= 8 * torch.finfo(dtype).eps * truth.abs().max().item():
        wrong.append(f"a matrix product is off by {_gap(product, truth):.3g}")
    # 3) there and back
    if not torch.equal(states.to(device).cpu(), states):
        wrong.append("what is copied to the device and back is not the same")
    return wrong


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.cpu().double() - b.cpu().double()).abs().max().item()
