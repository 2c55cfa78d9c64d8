"""Formats give the same numbers on a device that rounds where IEEE arithmetic does not: as CUDA may.

torch divides by a number on CUDA by multiplying with its rounded reciprocal, and powers of two may be off by a few
last bits there (CUDA's programming guide: `powf`, 4 units).
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lowmem_layers.model.formats import INT8, unpacked
from lowmem_layers.model.formats.gguf_blocks import BLOCKS
from lowmem_layers.model.formats.k_quants import K_QUANTISERS, quantise_rows
from tests.model.test_formats_scaled import EXAMPLES
from tests.model.test_k_quants import DIGESTS, numbers


class LikeCuda(TorchDispatchMode):
    """Divide by numbers and take powers as CUDA does, at its worst."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "div" and not isinstance(args[1], torch.Tensor) and args[0].dtype == torch.float32:
            self.seen.add("div")
            return args[0] * (torch.ones((), dtype=torch.float32) / args[1]).item()
        result = func(*args, **(kwargs or {}))
        if name in ("pow", "exp2", "ldexp") and result.dtype == torch.float32:
            self.seen.add(name)
            return torch.nextafter(result, torch.full_like(result, torch.inf))
        return result


def test_the_imitation_rounds() -> None:
    x = torch.arange(1.0, 200.0)
    with LikeCuda() as mode:
        assert not torch.equal(x / 127.0, x / torch.full_like(x, 127.0))
        assert torch.all(torch.ldexp(x, torch.ones_like(x)) > 2 * x)
    assert "div" in mode.seen
    assert mode.seen & {"ldexp", "pow"}


@pytest.mark.parametrize("name", K_QUANTISERS)
def test_the_k_formats_have_llama_cpps_bytes_there_too(name: str) -> None:
    with LikeCuda():
        packed = quantise_rows(torch.from_numpy(numbers()), name)
    assert hashlib.sha256(packed.numpy().tobytes()).hexdigest()[:16] == DIGESTS[name]


def test_int8_has_the_same_scales() -> None:
    weight = torch.from_numpy(numbers())
    with LikeCuda():
        packed = INT8.pack(weight)
    assert all(torch.equal(packed.parts[part], INT8.pack(weight).parts[part]) for part in packed.parts)


@pytest.mark.parametrize("name", EXAMPLES)
def test_checkpoints_unpack_to_the_same_numbers(name: str) -> None:
    packed = EXAMPLES[name].read()
    with LikeCuda():
        found = unpacked(packed, torch.float32)
    assert torch.equal(found, unpacked(packed, torch.float32))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_unpack_to_the_same_numbers(name: str) -> None:
    block = BLOCKS[name]
    blocks = torch.randint(0, 256, (512, block.n_bytes), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with LikeCuda():
        found = block.unpack(blocks)
    assert torch.equal(found.nan_to_num(), block.unpack(blocks).nan_to_num())


def test_powers_of_two_are_exact_down_to_the_least() -> None:
    """Of NVFP4's scales (unsigned E4M3) every one, against the definition."""
    scales = torch.arange(128, dtype=torch.uint8)
    blocks = torch.full((32, 36), 0x22, dtype=torch.uint8)  # every number is 1
    blocks[:, :4] = scales.view(32, 4)
    with LikeCuda():
        found = BLOCKS["NVFP4"].unpack(blocks).view(128, 16)[:, 0].double()
    exponents, mantissas = (scales >> 3).double(), (scales & 7).double()
    expected = torch.where(exponents == 0, mantissas * 2.0**-9, (1 + mantissas / 8) * 2.0 ** (exponents - 7))
    expected[127] = 0  # NaN in E4M3
    assert torch.equal(found, expected)
