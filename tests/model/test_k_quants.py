"""The K formats' quantisers give the bytes of llama.cpp's, and rows that they cannot pack get the format it takes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from lowmem_layers.errors import ModelError
from lowmem_layers.model.change import QUANT_FORMATS
from lowmem_layers.model.formats.k_quants import K_QUANTISERS, quantise_rows
from lowmem_layers.model.formats.quantiser import check_width, quantised, rounded

# sha256 of what `ggml_quantize_chunk` of ggml 0.20.2 makes of `numbers()`, without an importance matrix; the same by
# llama.cpp 0.4.0 (`python -m benchmarks.llama_cpp k-quants`)
DIGESTS = {
    "q2_k": "f812e2386127c7cd",
    "q3_k": "1f56b39b9a19ae8b",
    "q4_k": "0e06f3fa5d114488",
    "q5_k": "e759131b76912d1a",
    "q6_k": "d58c1339217e316a",
}  # fmt: skip


def numbers():
    """Give rows of many kinds. Shapes: (96, 512), from a generator whose numbers never change."""
    draw = np.random.RandomState(7)
    plain = draw.standard_normal((12, 512))
    zeros, outliers = plain.copy(), plain.copy()
    zeros[:, :300] = 0  # a whole block, and a part of one
    zeros[6:, 400:416] = 1e-20
    zeros[3], zeros[4] = 1.5, -2.0
    outliers[:, ::97] *= 1000
    kinds = [
        plain * 0.02, np.abs(plain), -np.abs(plain), np.exp(plain) * 0.01, zeros, outliers, np.round(plain * 4) / 40,
        plain * 1e-7,
    ]  # fmt: skip
    return np.concatenate(kinds).astype(np.float32)


@pytest.mark.parametrize("name", K_QUANTISERS)
def test_the_bytes_are_those_of_llama_cpp(name):
    packed = quantise_rows(torch.from_numpy(numbers()), name)
    assert packed.numel() * 8 / numbers().size == QUANT_FORMATS[name].bits
    assert hashlib.sha256(packed.numpy().tobytes()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", K_QUANTISERS)
def test_what_is_rounded_is_what_the_gguf_package_unpacks(name):
    weight = torch.from_numpy(numbers()[:12])
    expected = quants.dequantize(quantise_rows(weight, name).numpy(), GGMLQuantizationType[name.upper()])
    found = torch.empty_like(weight)
    rounded(weight, QUANT_FORMATS[name], found)
    assert np.array_equal(found.numpy(), expected)
    assert quantised(weight, QUANT_FORMATS[name]).n_bytes == weight.numel() * QUANT_FORMATS[name].bits / 8
    step = {"q2_k": 0.6, "q3_k": 0.35, "q4_k": 0.15, "q5_k": 0.08, "q6_k": 0.04}[name]
    assert 0 < (found - weight).norm() / weight.norm() < step


def test_rows_that_are_no_whole_blocks_get_the_format_that_stands_in():
    weight = torch.from_numpy(numbers()[:6, :480])
    for name, instead in (("q2_k", "q4_0"), ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0"), ("tq2_0", "q4_0")):
        found, expected = torch.empty_like(weight), torch.empty_like(weight)
        rounded(weight, QUANT_FORMATS[name], found)
        rounded(weight, QUANT_FORMATS[instead], expected)
        assert torch.equal(found, expected)
    with pytest.raises(ModelError, match=r"q3_k packs blocks of 32 numbers, and the rows of a weight have 48"):
        check_width(48, QUANT_FORMATS["q3_k"])
