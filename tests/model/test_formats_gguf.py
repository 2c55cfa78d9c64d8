"""GGUF blocks against the gguf package's own numpy dequantisation."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader, GgufTensor
from lowmem_layers.model.checkpoint.gguf_reader import own_gguf_packing
from lowmem_layers.model.formats import GGUF, unpack
from lowmem_layers.model.formats.gguf_blocks import BLOCKS


def random_rows(name: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Draw random blocks whose half-precision scales are finite."""
    block = BLOCKS[name]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows * columns // block.numbers, block.n_bytes), dtype=np.uint8)
    for start in block.scale_starts:
        halves = generator.normal(0, 0.1, len(data)).astype(np.float16)
        data[:, start : start + 2] = halves.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":  # one exponent a block: the small ones, of which two are subnormal, and middling ones
        data[:, 0] = np.arange(len(data)) % 8 + 128 * (np.arange(len(data)) % 2)
    if name == "IQ1_M":  # the half is in the high bits of four words: its lowest three bits of exponent alone
        data[:, 55] &= 0x3F
    return data.reshape(rows, -1)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_unpacks_to_the_bit(name: str) -> None:
    rows = random_rows(name, 6, 512)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    out = torch.empty(6, 512)
    unpack(GGUF.pack(torch.from_numpy(rows), name, (6, 512)), out)
    np.testing.assert_array_equal(out.numpy(), expected)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_rows_unpack_as_in_the_whole(name: str) -> None:
    packed = GGUF.pack(torch.from_numpy(random_rows(name, 6, 256)), name, (2, 3, 256))
    whole, part = torch.empty(2, 3, 256), torch.empty(2, 256)
    unpack(packed, whole)
    unpack(GGUF.rows(packed, 1, 3), part)  # begins where no multiple of four bytes is
    assert torch.equal(part, whole.view(6, 256)[1:3])
    assert GGUF.is_finite(packed)


def test_scales_in_another_form_may_be_infinite() -> None:
    rows = torch.from_numpy(random_rows("MXFP4", 2, 64))
    rows[1, 0], rows[1, 1] = 255, 7  # 2^127 × 12
    assert not GGUF.is_finite(GGUF.pack(rows, "MXFP4", (2, 64)))


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
def test_rounds_once_into_bfloat16(name: str) -> None:
    rows = random_rows(name, 4, 256, seed=1)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])).bfloat16()
    out = torch.empty(4, 256, dtype=torch.bfloat16)
    unpack(GGUF.pack(torch.from_numpy(rows), name, (4, 256)), out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_block_sizes_are_the_file_formats(name: str) -> None:
    numbers, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (BLOCKS[name].numbers, BLOCKS[name].n_bytes) == (numbers, n_bytes)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K", "Q1_0", "F64", "I32"])
def test_blocks_that_are_not_read_are_refused_by_name(name: str) -> None:
    tensor = GgufTensor("blk.0.attn_q.weight", (2, 256), name, 0, 0, Path("x.gguf"))
    with pytest.raises(CheckpointError, match=f"attn_q.weight is in blocks of type {name}") as caught:
        own_gguf_packing(GgufHeader(Path("x.gguf"), {}, {tensor.name: tensor}))
    assert ("," in caught.value.message) == name.startswith("Q")  # with the reason
    assert "Q4_0" in caught.value.hint


def test_the_comparison_notices_a_changed_byte() -> None:
    rows = random_rows("Q4_K", 2, 256)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q4_K)
    rows[1, 50] ^= 1
    out = torch.empty(2, 256)
    unpack(GGUF.pack(torch.from_numpy(rows), "Q4_K", (2, 256)), out)
    assert not np.array_equal(out.numpy(), expected)
