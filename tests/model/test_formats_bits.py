"""4-bit and 8-bit weights against the number formats' definitions and bitsandbytes' own functions."""

from __future__ import annotations

import json

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats import DENSE, FOUR_BIT, INT8, unpack


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bit_equals_bitsandbytes(quant_type: str, double_quant: bool, dtype: torch.dtype) -> None:
    exact = weight(48, 128, dtype=dtype)
    codes, state = quantize_4bit(exact, blocksize=64, compress_statistics=double_quant, quant_type=quant_type)
    expected = dequantize_4bit(codes, state)
    packed = FOUR_BIT.pack(exact, quant_type, double_quant=double_quant)
    out = torch.empty(48, 128, dtype=dtype)
    unpack(packed, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_own_nf4_chooses_bitsandbytes_codes(dtype: torch.dtype) -> None:
    """Also for zeros, for numbers midway between two of the table, and over the seams of pieces."""
    exact = weight(700, 192, dtype=dtype)
    exact[:3] = 0
    table = quantize_4bit(exact, quant_type="nf4")[1].code
    exact[4, :15] = ((table[1:] + table[:-1]) / 2).to(dtype)
    exact[4, 15] = 1
    codes, state = quantize_4bit(exact, blocksize=64, quant_type="nf4")
    packed = FOUR_BIT.pack(exact)
    assert torch.equal(packed.parts["weight"], codes)
    assert torch.equal(packed.parts["absmax"], state.absmax)
    assert torch.equal(packed.parts["quant_map"], state.code)


@pytest.mark.parametrize("columns", [128, 96, 30])  # rows that are whole blocks, and two kinds that are not
def test_four_bit_is_a_table_look_up_times_the_blocks_maximum(columns: int) -> None:
    exact = weight(32, columns, dtype=torch.float32)
    packed = FOUR_BIT.pack(exact)
    codes = packed.parts["weight"].flatten()
    indices = torch.stack([codes >> 4, codes & 15], dim=1).flatten().long()
    expected = packed.parts["quant_map"][indices] * packed.parts["absmax"].repeat_interleave(64)
    out = torch.empty(32, columns)
    unpack(packed, out)
    assert torch.equal(out.flatten(), expected)


@pytest.mark.parametrize("double_quant", [False, True])
def test_four_bit_reads_what_bitsandbytes_saves(double_quant: bool) -> None:
    exact = weight(32, 64)
    codes, state = quantize_4bit(exact, blocksize=64, compress_statistics=double_quant, quant_type="nf4")
    saved = {"weight": codes, **state.as_dict(packed=True)}
    packed = FOUR_BIT.read("q_proj.weight", saved, None, "file")
    out = torch.empty(32, 64, dtype=torch.bfloat16)
    unpack(packed, out)
    assert torch.equal(out, dequantize_4bit(codes, state))
    json.dumps(dict(packed.settings))


def test_four_bit_names_what_is_missing() -> None:
    with pytest.raises(CheckpointError, match=r"file: q_proj\.weight: the 4-bit weight lacks absmax, quant_map"):
        FOUR_BIT.read("q_proj.weight", {"weight": torch.zeros(4, 1, dtype=torch.uint8)}, None, "file")


def test_experts_packed_flat_are_the_experts_packed_alone() -> None:
    experts = weight(4, 16, 64)
    together = torch.empty_like(experts)
    unpack(FOUR_BIT.pack(experts), together)
    for index, expert in enumerate(experts):
        alone = torch.empty_like(expert)
        unpack(FOUR_BIT.pack(expert), alone)
        assert torch.equal(together[index], alone)


def test_int8_is_within_half_a_level() -> None:
    exact = weight(16, 64, dtype=torch.float32)
    packed = INT8.pack(exact)
    out = torch.empty(16, 64)
    unpack(packed, out)
    assert torch.all((out - exact).abs() <= packed.parts["scale"] / 2 * 1.0001)
    assert packed.n_bytes == 16 * 64 + 16 * 4


def test_int8_rounds_once_and_survives_a_row_of_zeros() -> None:
    exact = weight(4, 64, dtype=torch.float32)
    exact[2] = 0
    packed = INT8.pack(exact)
    wide, narrow = torch.empty(4, 64), torch.empty(4, 64, dtype=torch.bfloat16)
    unpack(packed, wide)
    unpack(packed, narrow)
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.all(wide[2] == 0)


def test_int8_reads_what_bitsandbytes_saves() -> None:
    levels = torch.tensor([[127, -64], [0, 127]], dtype=torch.int8)
    out = torch.empty(2, 2)
    unpack(INT8.read("q_proj.weight", {"weight": levels, "SCB": torch.tensor([2.54, 1.27])}, None, "file"), out)
    torch.testing.assert_close(out, torch.tensor([[2.54, -1.28], [0.0, 1.27]]))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_rounds_once(stored: torch.dtype) -> None:
    exact = weight(4, 8, dtype=stored)
    out = torch.empty(4, 8, dtype=torch.bfloat16)
    unpack(DENSE.pack(exact), out)
    assert torch.equal(out, exact.bfloat16())
