"""Formats of codes on a grid of scales, each against a dequantisation written from the format's description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.packing import choose_packing, own_packing
from lowmem_layers.model.formats import AWQ, COMPRESSED, FORMATS, FP8, HQQ, MODELOPT, MXFP4, Packed, stack, unpacked
from lowmem_layers.model.formats.format import part_of
from lowmem_layers.model.formats.fp8 import Fp8Config
from tests.model.conftest import E2M1, Header

ROWS, COLUMNS = 48, 64
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Example:
    """A packed weight with the config that goes with it, and the dense weight that it stands for."""

    form: Any
    about: dict[str, Any]
    tensors: Tensors
    dense: torch.Tensor

    def read(self) -> Packed:
        own = own_packing(self.about)
        assert own is not None
        assert own.format == self.form
        return self.form.read("layers.0.up_proj.weight", self.tensors, own.settings, "file")


def random(*shape: int, low: int = 0, high: int = 16) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def scales_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 0.1 + 0.01


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Write each row's codes as one little-endian bit stream, one bit at a time."""
    n_words = -(-codes.shape[1] * bits // 32)
    out = torch.zeros(codes.shape[0], n_words, dtype=torch.int64)
    for index in range(codes.shape[1]):
        for bit in range(bits):
            place = index * bits + bit
            out[:, place // 32] |= ((codes[:, index] >> bit) & 1) << (place % 32)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).int()


def spread(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return grid.repeat_interleave(height, 0).repeat_interleave(width, 1)[:ROWS, :COLUMNS]


def awq() -> Example:
    codes, zeros = random(ROWS, COLUMNS), random(ROWS, 4)
    scales = scales_of(ROWS, 4).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which output is in each field of a word
    shuffled = codes.T.reshape(COLUMNS, -1, 8)[..., order].flatten(1)
    zeros_shuffled = zeros.T.reshape(4, -1, 8)[..., order].flatten(1)
    tensors = {"qweight": words(shuffled, 4), "qzeros": words(zeros_shuffled, 4), "scales": scales.T.contiguous()}
    dense = (codes - spread(zeros, 1, 16)).float() * spread(scales.float(), 1, 16)
    return Example(AWQ, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"}, tensors, dense)


def compressed(weights: dict[str, Any], form: str, tensors: Tensors, dense: torch.Tensor) -> Example:
    group = {"targets": ["Linear"], "weights": weights}
    about = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return Example(COMPRESSED, about, tensors, dense)


def packed_integers(bits: int, *, asymmetric: bool = False, act_order: bool = False) -> Example:
    codes, scales = random(ROWS, COLUMNS, high=1 << bits), scales_of(ROWS, 4).bfloat16()
    zeros = random(ROWS, 4, high=1 << bits) if asymmetric else torch.full((ROWS, 4), 1 << (bits - 1))
    order = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(1)) if act_order else torch.arange(COLUMNS)
    group = (torch.arange(COLUMNS) // 16)[order]
    tensors = {
        "weight_packed": words(codes, bits), "weight_scale": scales, "weight_shape": torch.tensor([ROWS, COLUMNS]),
    }  # fmt: skip
    tensors |= {"weight_zero_point": words(zeros.T, bits).T.contiguous()} if asymmetric else {}
    tensors |= {"weight_g_idx": group.int()} if act_order else {}
    dense = (codes - zeros[:, group]).float() * scales.float()[:, group]
    return compressed({"num_bits": bits, "type": "int"}, "pack-quantized", tensors, dense)


def whole_integers(*, asymmetric: bool) -> Example:
    codes, scales = random(ROWS, COLUMNS, low=-128, high=128), scales_of(ROWS, 1)
    zeros = random(ROWS, 1, low=-128, high=128) if asymmetric else torch.zeros(ROWS, 1)
    tensors = {"weight": codes.to(torch.int8), "weight_scale": scales}
    tensors |= {"weight_zero_point": zeros.to(torch.int8)} if asymmetric else {}
    return compressed({"num_bits": 8}, "int-quantized", tensors, (codes - zeros).float() * scales)


def floats(*shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 8).to(torch.float8_e4m3fn)


def eight_bit(scales: torch.Tensor, height: int, width: int, block: list[int] | None, part: str) -> Example:
    codes = floats(ROWS, COLUMNS)
    dense = codes.float() * spread(scales.reshape(-(-ROWS // height), -(-COLUMNS // width)), height, width)
    about = {"quant_method": "fp8", "weight_block_size": block}
    return Example(FP8, about, {"weight": codes, part: scales, "input_scale": torch.ones(1)}, dense)


def four_bit_floats() -> tuple[torch.Tensor, torch.Tensor]:
    codes = random(ROWS, COLUMNS)
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8), E2M1[codes]


def nvfp4(*, divides: bool) -> Example:
    packed, numbers = four_bit_floats()
    scales, factor = (scales_of(ROWS, 4) * 100).to(torch.float8_e4m3fn), torch.tensor([37.0])
    if divides:
        dense = numbers * spread(scales.float() / factor, 1, 16)
        tensors = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": factor}
        return compressed({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4-pack-quantized", tensors, dense)
    tensors = {"weight": packed, "weight_scale": scales, "weight_scale_2": factor}
    about = {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}
    return Example(MODELOPT, about, tensors, numbers * spread(scales.float() * factor, 1, 16))


def mxfp4_pack() -> Example:
    packed, numbers = four_bit_floats()
    exponents = random(ROWS, 2, low=110, high=140).to(torch.uint8)
    dense = numbers * spread(2.0 ** (exponents.float() - 127), 1, 32)
    weights = {"num_bits": 4, "type": "float", "group_size": 32}
    return compressed(weights, "mxfp4-pack-quantized", {"weight_packed": packed, "weight_scale": exponents}, dense)


def hqq(bits: int, axis: int = 1) -> Example:
    codes = random(ROWS, COLUMNS, high=1 << bits)
    grouped = codes.view(-1, 16) if axis else codes.view(16, -1)
    shape = (ROWS * 4, 1) if axis else (1, ROWS * 4)
    scale, zero = scales_of(*shape).half(), (scales_of(*shape) * 90).half()
    per = {4: 2, 3: 10}[bits]
    padded = torch.nn.functional.pad(grouped, (0, 0, 0, -len(grouped) % per))
    shares = [share << bits * (per - 1 - place) for place, share in enumerate(padded.chunk(per))]
    held = torch.stack(shares).sum(0)
    facts = {"nbits": bits, "group_size": 16, "axis": axis, "quant_scale": 0, "quant_zero": 0}
    tensors = {"W_q": held.to(torch.int32 if bits == 3 else torch.uint8), "scale": scale, "zero": zero}
    tensors |= {name: torch.tensor(value) for name, value in facts.items()} | {"shape": torch.tensor([ROWS, COLUMNS])}
    dense = ((grouped.half() - zero) * scale).view(ROWS, COLUMNS).float()
    about = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": 16}}}
    return Example(HQQ, about, tensors, dense)


EXAMPLES = {
    "awq": awq(),
    "w4": packed_integers(4),
    "w4 asymmetric": packed_integers(4, asymmetric=True),
    "w4 act-order": packed_integers(4, act_order=True),
    "w8": packed_integers(8),
    "w3 asymmetric": packed_integers(3, asymmetric=True),
    "int8": whole_integers(asymmetric=False),
    "int8 asymmetric": whole_integers(asymmetric=True),
    "fp8 blocks": eight_bit(scales_of(3, 4), 16, 16, [16, 16], "weight_scale_inv"),
    "fp8 blocks with a rest": eight_bit(scales_of(2, 3), 32, 24, [32, 24], "weight_scale_inv"),
    "fp8 rows": eight_bit(scales_of(ROWS, 1), 1, COLUMNS, None, "weight_scale"),
    "fp8 tensor": eight_bit(scales_of(1), ROWS, COLUMNS, None, "weight_scale"),
    "nvfp4": nvfp4(divides=True),
    "modelopt nvfp4": nvfp4(divides=False),
    "mxfp4": mxfp4_pack(),
    "hqq": hqq(4),
    "hqq 3-bit": hqq(3),
    "hqq along columns": hqq(4, axis=0),
    "hqq 3-bit along columns": hqq(3, axis=0),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_unpacks_to_the_bit_whole_by_rows_and_stacked(name: str) -> None:
    example = EXAMPLES[name]
    packed = example.read()
    assert packed.shape == (ROWS, COLUMNS)
    assert torch.equal(unpacked(packed, torch.float32), example.dense)
    assert torch.equal(unpacked(packed, torch.bfloat16), example.dense.bfloat16())
    inner = packed.format.rows(packed.format.rows(packed, 5, 41), 6, 30)  # rows 11 to 35
    assert torch.equal(unpacked(inner, torch.float32), example.dense[11:35])
    stacked = stack([[packed, packed], [packed, packed]], (2, 2 * ROWS, COLUMNS))
    assert torch.equal(unpacked(stacked, torch.float32), example.dense.repeat(4, 1).view(2, 2 * ROWS, COLUMNS))
    assert FORMATS[packed.format.name] == packed.format


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_bytes_at_home_are_known_from_headers(name: str) -> None:
    example = EXAMPLES[name]
    headers = {part: Header(tuple(tensor.shape), tensor.nbytes) for part, tensor in example.tensors.items()}
    own = own_packing(example.about)
    assert own is not None
    planned = example.form.home_bytes("layers.0.up_proj.weight", headers, own.settings)
    assert example.read().n_bytes == planned


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_missing_part_is_named(name: str) -> None:
    example = EXAMPLES[name]
    part = next(part for part in (*example.form.scales, "weight_scale") if part in example.tensors)
    rest = {key: value for key, value in example.tensors.items() if key != part}
    with pytest.raises(CheckpointError, match=r"file: layers\.0\.up_proj\S* lacks "):
        Example(example.form, example.about, rest, example.dense).read()


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"scales of shape \(5, 7\) do not fit \(48, 64\) in blocks of"):
        FP8.read("w", {"weight": floats(ROWS, COLUMNS), "weight_scale_inv": scales_of(5, 7)}, Fp8Config(None), "file")


def test_codes_that_are_not_finite_are_refused() -> None:
    codes = floats(ROWS, COLUMNS)
    codes[3, 3] = float("nan")
    with pytest.raises(CheckpointError, match="holds NaN"):
        FP8.read("w", {"weight": codes, "weight_scale_inv": scales_of(1)}, Fp8Config(None), "file")


def test_experts_of_gpt_oss_are_transformers_own_dequantisation() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = random(3, 40, 2, 16, high=256).to(torch.uint8)
    scales = random(3, 40, 2, low=100, high=130).to(torch.uint8)
    packed = MXFP4.read("experts.gate_up_proj", {"blocks": blocks, "scales": scales}, None, "file")
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)  # (experts, in, out)
    assert packed.shape == (3, 64, 40)
    assert torch.equal(unpacked(packed, torch.bfloat16), expected)
    assert packed.n_bytes == blocks.numel() + scales.numel()


def test_fine_grained_fp8_is_transformers_own_dequantisation() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    for scales in (scales_of(3, 4), random(3, 4, low=118, high=130).to(torch.uint8)):
        codes = floats(ROWS, COLUMNS)
        packed = FP8.read("w", {"weight": codes, "weight_scale_inv": scales}, Fp8Config((16, 16)), "file")
        expected = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
        assert torch.equal(unpacked(packed, torch.bfloat16), expected)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"quant_method": "awq", "bits": 3}, "says 3 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "says version 'gemv'"),
        ({"quant_method": "awq", "group_size": 0}, "says group_size 0"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"says weight_block_size \[128\]"),
        ({"quant_method": "compressed-tensors", "format": "sparse-24-bitmask"}, "says format 'sparse-24-bitmask'"),
        (
            {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"u": {}}}},
            "hidden states are rotated",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "says quant_algo 'W4A16_AWQ'"),
        ({"quant_method": "auto-round", "packing_format": "mlx"}, "says packing_format 'mlx'"),
    ],
)
def test_configs_that_are_not_read(about: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        own_packing(about)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("about", "name", "version"),
    [
        ({"packing_format": "auto_round:auto_gptq"}, "gptq", 1),
        ({"packing_format": "auto_round"}, "gptq", 2),
        ({"backend": "auto_round:gptqmodel"}, "gptq", 2),
        ({"packing_format": "auto_round:auto_awq"}, "awq", 0),
    ],
)
def test_auto_round_is_another_packages_layout(about: dict[str, str], name: str, version: int) -> None:
    extra = {"model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}, "lm_head": {"bits": 16}}
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": extra}
    own = own_packing(config | about)
    assert own is not None
    assert getattr(own.format, "name", "") == name
    if version:
        assert own.settings.version == version
        assert own.settings.of("model.layers.0.mlp.up_proj").bits == 8
        assert own.settings.of("model.layers.1.mlp.up_proj").bits == 4


def test_activations_that_their_makers_quantise_are_known() -> None:
    group = {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}
    own = own_packing({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}})
    assert own is not None
    assert own.runs_quantised
    assert own.label == "compressed-tensors W8A8 int"
    assert choose_packing("8bit", own, requantize=False).keep


def test_endings_of_other_formats_need_their_first_part() -> None:
    formats = (AWQ, FP8, MXFP4, HQQ)
    assert part_of("m.scale", {"m.scale"}, formats) is None
    assert part_of("m.scale", {"m.scale", "m.W_q"}, formats) == (HQQ, "m.weight", "scale")
    assert part_of("m.scale", {"m.scale"}, formats, HQQ) == (HQQ, "m.weight", "scale")
    assert part_of("e.down_proj_blocks", {"e.down_proj_blocks"}, formats) == (MXFP4, "e.down_proj", "blocks")
    assert part_of("e.down_proj_scale_inv", set(), formats, FP8) == (FP8, "e.down_proj", "scale_inv")
