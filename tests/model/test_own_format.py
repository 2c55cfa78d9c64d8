"""A weight format that the package does not know is one object: the reader reads a checkpoint with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.packing import choose_packing, own_packing
from lowmem_layers.model.checkpoint.safetensors_reader import SafetensorsReader
from lowmem_layers.model.checkpoint.skeleton import build_skeleton
from lowmem_layers.model.formats import CHECKPOINT_FORMATS, FORMATS, OwnPacking, Packed, unpack
from lowmem_layers.model.formats.format import Stored, row_pieces
from lowmem_layers.model.homes.home import MemoryHome
from lowmem_layers.model.homes.places import is_quantised, streamed_places
from tests.model.conftest import save_model, tiny_config

LEVELS = 8


@dataclass(frozen=True)
class Toy:
    """Whole eighths in int8, times a step for the weight; both parts have names that GPTQ uses too."""

    name: str = "toy"
    title: str = "toys"
    parts: tuple[str, ...] = ("qweight", "scales")
    scales: tuple[str, ...] = ("scales",)

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        if about["quant_method"] != "toy":
            return None
        return OwnPacking(self, 8, f"toy of {about['levels']} levels", about["levels"])

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        return sum(part.n_bytes for part in parts.values())

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        if "scales" not in tensors:
            raise CheckpointError(f"{file}: {name} lacks its step", "make another toy")
        codes = tensors["qweight"]
        parts = {"codes": codes, "step": tensors["scales"]}
        return Packed(self, tuple(codes.shape), parts, {"levels": settings})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        parts = {"codes": packed.parts["codes"][start:stop], "step": packed.parts["step"]}
        return Packed(self, (stop - start, packed.shape[-1]), parts, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        for piece, there in row_pieces(packed, out):
            there.copy_(piece.parts["codes"] * piece.parts["step"] / piece.settings["levels"])


TOY = Toy()
Expected = dict[str, torch.Tensor]


def toy_checkpoint(folder: Path, family: str) -> Expected:
    """Pack every linear weight of the decoder layers as a toy; return what the toys stand for."""
    save_model(folder, family, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    expected: Expected = {}
    for name in [name for name in tensors if ".layers." in name and tensors[name].dim() == 2]:
        if name.endswith(".gate.weight"):
            continue
        stem, codes = name.removesuffix(".weight"), (tensors.pop(name) * 1000).round().to(torch.int8)
        tensors |= {f"{stem}.qweight": codes, f"{stem}.scales": torch.tensor([0.5])}
        expected[name] = codes.float() * 0.5 / LEVELS
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return expected


def reader_of(folder: Path, family: str, *, requantize: bool = False) -> SafetensorsReader:
    model = build_skeleton(tiny_config(family), torch.float32)
    places = list(streamed_places(dissect(model), "model.layers", torch.float32))
    formats = (*CHECKPOINT_FORMATS, TOY)
    own = own_packing({"quant_method": "toy", "levels": LEVELS}, formats)
    packing = choose_packing("none", own, requantize=requantize)
    converter = Converter(model, "model.layers", torch.float32)
    return SafetensorsReader(folder, model, converter, places, packing, own, torch.float32, formats)


def unpacked_layers(reader: SafetensorsReader) -> dict[str, torch.Tensor]:
    """Read the three layers, by way of a home in memory."""
    reader.read_resident()
    home, found = MemoryHome(torch.device("cpu")), {}
    for layer in range(3):
        home.add((layer, "attn"), reader.read_layer(layer))
        for views in home.stream([[(layer, "attn")]]):
            for key, packed in views.items():
                found[key] = torch.empty(packed.shape)
                unpack(packed, found[key])
    return found


@pytest.mark.parametrize("requantize", [False, True])
def test_a_checkpoint_of_toys_is_read(tmp_path: Path, requantize: bool) -> None:
    expected = toy_checkpoint(tmp_path, "llama")
    found = unpacked_layers(reader_of(tmp_path, "llama", requantize=requantize))
    assert len(expected) == 21
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert "toy" not in FORMATS


def test_experts_of_toys_are_joined_and_keep_their_packing(tmp_path: Path) -> None:
    expected = toy_checkpoint(tmp_path, "mixtral")
    reader = reader_of(tmp_path, "mixtral")
    reader.read_resident()
    packed = reader.read_layer(1)["model.layers.1.mlp.experts.down_proj"]
    assert packed.n_bytes < packed.shape[0] * (packed.shape[1] * packed.shape[2] + 8)  # a byte a number, and the step
    out = torch.empty(packed.shape)
    unpack(packed, out)
    stem = "model.layers.1.block_sparse_moe.experts"
    assert torch.equal(out, torch.stack([expected[f"{stem}.{index}.w2.weight"] for index in range(4)]))


def test_its_bytes_at_home_are_known_from_headers(tmp_path: Path) -> None:
    toy_checkpoint(tmp_path, "llama")
    planned = reader_of(tmp_path, "llama").bytes_at_home()
    reader = reader_of(tmp_path, "llama")
    reader.read_resident()
    for layer in range(3):
        for key, packed in reader.read_layer(layer).items():
            assert packed.format == TOY
            assert planned[key] == packed.n_bytes


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace some of a toy's parts, or take them away."""
    content = load_file(folder / "model.safetensors")
    for part, tensor in tensors.items():
        name = f"model.layers.1.mlp.up_proj.{part}"
        content.pop(name, None)
        content |= {name: tensor} if tensor is not None else {}
    save_file(content, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("scales", None, r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight lacks its step"),
        ("scales", torch.tensor([float("nan")]), r"up_proj\.weight \(scales\) holds NaN or infinite numbers"),
        ("weight", torch.zeros(96, 64), r"up_proj\.weight is there twice, plain and packed as toys"),
        ("SCB", torch.zeros(96), r"up_proj\.weight is packed as (toys and as|bitsandbytes 8-bit and as) "),
        ("qweight", torch.zeros(96, 63, dtype=torch.int8), r"up_proj\.weight unpacks to \(96, 63\)"),
    ],
)
def test_damaged_toys(tmp_path: Path, part: str, tensor: torch.Tensor | None, message: str) -> None:
    toy_checkpoint(tmp_path, "llama")
    change(tmp_path, **{part: tensor})
    with pytest.raises(CheckpointError, match=message) as caught:
        unpacked_layers(reader_of(tmp_path, "llama"))
    assert caught.value.hint


def test_the_hint_names_the_formats_that_are_read() -> None:
    with pytest.raises(CheckpointError, match="quantised by 'magic'") as caught:
        own_packing({"quant_method": "magic"}, (TOY,))
    assert caught.value.hint == "plain, toys and GGUF checkpoints are read"


def test_a_packing_that_the_config_does_not_name(tmp_path: Path) -> None:
    """Its tensors are taken for GPTQ's, which needs the config to be read."""
    toy_checkpoint(tmp_path, "llama")
    model = build_skeleton(tiny_config("llama"), torch.float32)
    converter = Converter(model, "model.layers", torch.float32)
    own = own_packing({"quant_method": "bitsandbytes", "load_in_4bit": True})
    places = list(streamed_places(dissect(model), "model.layers", torch.float32))
    packing = choose_packing("none", own, requantize=False)
    reader = SafetensorsReader(tmp_path, model, converter, places, packing, own, torch.float32)
    with pytest.raises(CheckpointError, match=r"is packed by GPTQ, but config\.json does not say so"):
        reader.read_layer(0)
    plain = choose_packing("none", None, requantize=False)
    assert (plain.target, plain.label) == ("none", "not quantised"), "a display that says 'weights none' says nothing"
    with pytest.raises(CheckpointError, match=r"qweight is packed, but config\.json does not say how"):
        SafetensorsReader(tmp_path, model, converter, places, plain, None, torch.float32)


def test_only_linear_weights_are_toys(tmp_path: Path) -> None:
    toy_checkpoint(tmp_path, "mixtral")
    reader = reader_of(tmp_path, "mixtral")
    reader.read_resident()
    packed = reader.read_layer(0)
    model = build_skeleton(tiny_config("mixtral"), torch.float32)
    routers = [p.key for p in streamed_places(dissect(model), "model.layers", torch.float32) if not is_quantised(p)]
    assert [packed[key].format.name for key in routers if key in packed] == ["dense"]
