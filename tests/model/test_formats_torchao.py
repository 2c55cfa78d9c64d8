"""torchao's tensor classes, taken apart as its own `flatten_tensor_state_dict` does, against their definitions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.packing import own_packing
from lowmem_layers.model.formats import TORCHAO, Packed, unpacked
from lowmem_layers.model.formats.format import part_of
from lowmem_layers.model.formats.torchao import NOTES
from lowmem_layers.model.homes.store import Visit
from lowmem_layers.model.load import load_model
from lowmem_layers.model.spec import ModelSpec
from tests.model.conftest import E2M1, Header, save_model

ROWS, COLUMNS, NAME = 160, 128, "layers.0.up_proj.weight"


@dataclass(frozen=True)
class Example:
    """A class with its attributes and tensors, the dense weight that it stands for, and its bits."""

    kind: str
    attributes: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    dense: torch.Tensor
    bits: int

    def about(self) -> dict[str, Any]:
        note = json.dumps({"_type": self.kind, "_data": self.attributes, "_tensor_data_names": list(self.tensors)})
        return {"quant_method": "torchao", NOTES: {"format": "pt", "tensor_names": f'["{NAME}"]', NAME: note}}

    def read(self) -> Packed:
        own = own_packing(self.about())
        assert own is not None
        assert own.bits == self.bits
        return TORCHAO.read(NAME, self.tensors, own.settings, "file")


def dtype(name: str) -> dict[str, str]:
    return {"_type": "torch.dtype", "_data": name}


def random(*shape: int, low: int = 0, high: int = 16) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def scales_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 0.1 + 0.01


def wide(grid: torch.Tensor) -> torch.Tensor:
    return grid.float().repeat_interleave(COLUMNS // grid.shape[1], 1)


def swizzled(scales: torch.Tensor) -> torch.Tensor:
    """Lay scales out in tiles of 128 × 4, one by one, as cuBLAS' documentation numbers them."""
    down, across = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    out = torch.zeros(down * across * 512, dtype=scales.dtype)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            tile = row // 128 * across + column // 4
            out[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column]
    return out.view(down * 32, across * 16)


def int4(*, pre_scaled: bool = False) -> Example:
    codes, scale, zero = random(ROWS, COLUMNS, low=-8, high=8), scales_of(ROWS, 4).bfloat16(), scales_of(ROWS, 4) - 0.5
    packed = ((codes[:, ::2] & 15) | ((codes[:, 1::2] & 15) << 4)).to(torch.uint8).view(torch.int8)
    tensors = {"qdata": packed, "scale": scale.T.contiguous(), "zero_point": zero.T.contiguous()}
    dense = codes * wide(scale) + wide(zero)
    if pre_scaled:  # what activations would be multiplied by, as AWQ does
        tensors["act_pre_scale"] = scales_of(COLUMNS) * 20
        dense = dense * tensors["act_pre_scale"]
    return Example("Int4Tensor", {"block_size": [1, 32], "shape": [ROWS, COLUMNS]}, tensors, dense, 4)


def tiles() -> Example:
    """Lay codes out as the kernel that packs them does, lane by lane, columns padded to 1,024."""
    codes, scale, zero = random(ROWS, COLUMNS), scales_of(ROWS, 4).bfloat16(), (scales_of(ROWS, 4) - 0.5).bfloat16()
    whole = torch.nn.functional.pad(codes, (0, 1024 - COLUMNS))
    out = torch.zeros(ROWS // 8, 8, 32, 4, dtype=torch.int64)
    for lane in range(32):
        for word in range(4):
            for place, step in enumerate([0, 8, 16, 24, 1, 9, 17, 25]):  # the column of each field of four bits
                columns = torch.arange(8) * 128 + word * 32 + lane % 4 * 2 + step
                out[:, :, lane, word] |= whole[lane // 4 :: 8][:, columns].long() << 4 * place
    words = torch.where(out >= 1 << 31, out - (1 << 32), out).int()
    both = torch.nn.functional.pad(torch.stack([scale.T, zero.T], dim=-1), (0, 0, 0, 0, 0, 28))  # (groups, rows, 2)
    dense = (codes - 8) * wide(scale) + wide(zero)
    tensors = {"qdata": words, "scale_and_zero": both}
    return Example("Int4TilePackedTo4dTensor", {"block_size": [1, 32], "shape": [ROWS, COLUMNS]}, tensors, dense, 4)


def integers(kind: str, groups: int, zero_point: torch.Tensor | None, bits: int = 8, **attributes: Any) -> Example:
    codes, scale = random(ROWS, COLUMNS, low=-(1 << bits - 1), high=1 << bits - 1), scales_of(ROWS, groups)
    tensors = {"qdata": codes.to(torch.int8), "scale": scale}
    tensors |= {} if zero_point is None else {"zero_point": zero_point}
    dense = (codes - (0 if zero_point is None else wide(zero_point))).float() * wide(scale)
    return Example(kind, {"block_size": [1, COLUMNS // groups], **attributes}, tensors, dense, bits)


def float8(rows: int, columns: int) -> Example:
    codes = (torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3)) * 8).to(torch.float8_e4m3fn)
    scale = scales_of(rows, columns)
    dense = codes.float() * scale.repeat_interleave(ROWS // rows, 0).repeat_interleave(COLUMNS // columns, 1)
    attributes = {"block_size": [ROWS // rows, COLUMNS // columns], "dtype": dtype("bfloat16")}
    return Example("Float8Tensor", attributes, {"qdata": codes, "scale": scale}, dense, 8)


def shared(kind: str, size: int, *, swizzle: bool, factor: float | None = None) -> Example:
    codes, exponents = random(ROWS, COLUMNS), random(ROWS, COLUMNS // size, low=110, high=140).to(torch.uint8)
    scales = exponents if kind == "MXTensor" else (scales_of(ROWS, COLUMNS // size) * 100).to(torch.float8_e4m3fn)
    numbers = 2.0 ** (exponents.float() - 127) if kind == "MXTensor" else scales.float() * (factor or 1.0)
    tensors = {"qdata": (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8)}
    tensors["scale"] = swizzled(scales.view(torch.uint8)).view(scales.dtype) if swizzle else scales
    tensors |= {} if factor is None else {"per_tensor_scale": torch.tensor(factor)}
    attributes = {"block_size": size, "is_swizzled_scales": swizzle}
    attributes |= {"elem_dtype": dtype("float4_e2m1fn_x2")} if kind == "MXTensor" else {}
    return Example(kind, attributes, tensors, E2M1[codes] * wide(numbers), 4)


ZEROS = random(ROWS, 4, low=-8, high=8).to(torch.int8)
EXAMPLES = {
    "int4": int4(),
    "int4 with a scale for activations": int4(pre_scaled=True),
    "int4 in tiles": tiles(),
    "int8": integers("Int8Tensor", 1, None),
    "int4 in bytes": integers("IntxUnpackedToInt8Tensor", 4, ZEROS, 4, target_dtype=dtype("int4")),
    "float8 rows": float8(ROWS, 1),
    "float8 blocks": float8(5, 4),
    "float8 whole": float8(1, 1),
    "mxfp4": shared("MXTensor", 32, swizzle=False),
    "mxfp4 in tiles": shared("MXTensor", 32, swizzle=True),
    "nvfp4": shared("NVFP4Tensor", 16, swizzle=False),
    "nvfp4 in tiles": shared("NVFP4Tensor", 16, swizzle=True, factor=0.37),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_unpacks_by_the_classs_definition(name: str) -> None:
    example = EXAMPLES[name]
    packed = example.read()
    assert torch.equal(unpacked(packed, torch.float32), example.dense)
    part = packed.format.rows(packed.format.rows(packed, 20, 150), 13, 90)  # rows 33 to 110
    assert torch.equal(unpacked(part, torch.float32), example.dense[33:110])
    headers = {key: Header(tuple(value.shape), value.nbytes) for key, value in example.tensors.items()}
    own = own_packing(example.about())
    assert own is not None
    assert TORCHAO.home_bytes(NAME, headers, own.settings) == packed.n_bytes


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("Int4PlainInt32Tensor", {}, "laid out by the kernels of Intel's or Ascend's cards"),
        ("MXTensor", {"elem_dtype": "fp6_e3m2", "block_size": 32}, "class MXTensor, in a way that is not known"),
        ("SparseTensor", {}, "class SparseTensor, in a way that is not known"),
    ],
)
def test_a_class_that_is_not_read_is_named(kind: str, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        own_packing(Example(kind, attributes, {}, torch.empty(0), 4).about())
    assert "int4_packing_format='plain'" in caught.value.hint


def test_without_notes_nothing_is_guessed() -> None:
    with pytest.raises(CheckpointError, match="headers name no tensor of its classes"):
        own_packing({"quant_method": "torchao", "quant_type": "int4_weight_only"})


def test_damaged_tensors_are_named() -> None:
    good = EXAMPLES["nvfp4 in tiles"]
    for part, value, message in [
        ("scale", torch.ones(32, 32), "1024 scales do not fill tiles for 160 × 8"),
        ("per_tensor_scale", torch.ones(2), "a scale of all scales for each expert"),
    ]:
        broken = Example(good.kind, good.attributes, good.tensors | {part: value}, good.dense, 4)
        with pytest.raises(CheckpointError, match=message):
            broken.read()


def test_activations_that_the_classes_round_are_known() -> None:
    kwargs = {"_type": "QuantizeTensorToInt8Kwargs", "_data": {}}
    own = own_packing(integers("Int8Tensor", 1, None, act_quant_kwargs=kwargs).about())
    assert own is not None
    assert own.runs_quantised
    assert own.label == "torchao Int8"


def test_tensors_are_known_by_their_weights_name() -> None:
    names = {"m.experts._gate_up_proj_qdata", "m.experts._gate_up_proj_per_tensor_scale"}
    found = [part_of(name, names, (TORCHAO,)) for name in sorted(names, reverse=True)]
    assert found == [(TORCHAO, "m.experts.gate_up_proj", key) for key in ("qdata", "per_tensor_scale")]


def test_a_checkpoint_is_loaded_packed(tmp_path: Path) -> None:
    """A folder as transformers saves it: notes in the header, tensors of the decoder layers taken apart."""
    save_model(tmp_path, "llama", num_hidden_layers=1)
    tensors, notes = load_file(tmp_path / "model.safetensors"), {"format": "pt"}
    expected = {}
    for name in [name for name, value in tensors.items() if ".layers." in name and value.dim() == 2]:
        codes, stem = tensors.pop(name).to(torch.float8_e4m3fn), name.removesuffix(".weight")
        scale = scales_of(codes.shape[0], 1)
        tensors |= {f"{stem}._weight_qdata": codes, f"{stem}._weight_scale": scale}
        notes[name] = json.dumps({"_type": "Float8Tensor", "_data": {"block_size": [1, codes.shape[1]]}})
        expected[name] = codes.float() * scale
    save_file(tensors, tmp_path / "model.safetensors", notes)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))
    model = load_model(ModelSpec(str(tmp_path), dtype="float32", device="cpu", cache=False))
    assert model.describe()["quantisation"]["used"] == "torchao Float8"
    for _ in model.store.sweep([Visit(0, frozenset({"attn", "ffn"}))]):
        found = dict(model.module.named_parameters())
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
