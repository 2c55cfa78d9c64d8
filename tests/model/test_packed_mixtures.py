"""Packed checkpoints of mixtures, expert by expert as their writers save them, keep their packing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.formats.scaled import fields
from tests.model.conftest import four_bit_exact, save_model
from tests.model.test_load import copy_tokenizer, dense_state, logits_of

Tensors = dict[str, torch.Tensor]
Packer = Callable[[str, torch.Tensor, Tensors], torch.Tensor]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True, "desc_act": False}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
SYNONYMS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))


def pack_gptq(stem: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """Put any codes in a weight's place; return what they stand for."""
    outputs, inputs = weight.shape
    random = torch.Generator().manual_seed(len(tensors))
    codes = torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), generator=random).int()
    scales = torch.rand(inputs // 16, outputs, generator=random).half()
    tensors |= {f"{stem}.qweight": codes, f"{stem}.scales": scales}
    tensors[f"{stem}.qzeros"] = torch.full((inputs // 16, outputs // 8), 0x77777777, dtype=torch.int32)
    levels = fields(codes.T.contiguous(), 4) - 8
    return (levels * scales.float().T.repeat_interleave(16, dim=1)).bfloat16()


def pack_nf4(stem: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """Quantise as bitsandbytes does, scales too, under the names in which transformers saves it."""
    codes, state = quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    tensors |= {f"{stem}.weight": codes, **{f"{stem}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    return four_bit_exact(codes, state, torch.bfloat16)


def packed_checkpoint(
    folder: Path, family: str, pack: Packer, about: object, renamed: Callable[[str], str] = str
) -> Tensors:
    """Save a mixture with every expert's matrices packed on their own; return the dense ones by their old names."""
    save_model(folder, family)
    tensors = load_file(folder / "model.safetensors")
    expected: Tensors = {}
    for name in [name for name in tensors if re.search(r"experts\.\d+\..*weight", name)]:
        stem = renamed(name.removesuffix(".weight"))
        expected[name] = pack(stem, tensors.pop(name), tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": about}
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def check_planned(model: DecoderModel) -> None:
    """Compare what was counted before a weight was read with what was loaded, in parts that begin at 256 bytes."""
    found = model.describe()["packed_bytes"]
    assert 0.93 * found < model.shape.n_bytes.packed <= found


def stacked(expected: Tensors, layer: int, *leaves: str) -> torch.Tensor:
    """Stack the experts' matrices as the model does."""
    chosen = {name: value for name, value in expected.items() if f".{layer}." in name.partition("experts")[0]}
    stacks = [
        torch.stack([chosen[name] for name in sorted(chosen) if name.endswith(f".{leaf}.weight")]) for leaf in leaves
    ]
    return torch.cat(stacks, dim=1)


def as_gptqmodel_names_them(stem: str) -> str:
    head, _, leaf = stem.rpartition(".")
    return f"{head.replace('block_sparse_moe', 'mlp')}.{SYNONYMS.get(leaf, leaf)}"


CASES = [
    pytest.param("mixtral", ("w1", "w3"), ("w2",), pack_gptq, GPTQ, str, id="mixtral-gptq"),
    pytest.param("mixtral", ("w1", "w3"), ("w2",), pack_gptq, GPTQ, as_gptqmodel_names_them, id="mixtral-gptqmodel"),
    pytest.param("mixtral", ("w1", "w3"), ("w2",), pack_nf4, NF4, str, id="mixtral-nf4"),
    pytest.param("qwen3_moe", ("gate_proj", "up_proj"), ("down_proj",), pack_gptq, GPTQ, str, id="qwen3_moe-gptq"),
    pytest.param("deepseek_v3", ("gate_proj", "up_proj"), ("down_proj",), pack_nf4, NF4, str, id="deepseek_v3-nf4"),
]


@pytest.mark.parametrize(("family", "up", "down", "pack", "about", "renamed"), CASES)
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_experts_keep_their_packing(
    tmp_path: Path, family: str, up: tuple[str, ...], down: tuple[str, ...], pack: Packer, about: object,
    renamed: Callable[[str], str], offload: str,
) -> None:  # fmt: skip
    folder = tmp_path / "model"
    expected = packed_checkpoint(folder, family, pack, about, renamed)
    model = load_model(ModelSpec(str(folder), "4bit", "bfloat16", "cpu", offload=offload))  # type: ignore[arg-type]
    assert model.describe()["quantisation"]["kept"] is True
    check_planned(model)
    state = dense_state(model)
    layers = [layer for layer in range(3) if f"model.layers.{layer}.mlp.experts.down_proj" in state]
    assert layers
    for layer in layers:
        assert torch.equal(state[f"model.layers.{layer}.mlp.experts.gate_up_proj"], stacked(expected, layer, *up))
        assert torch.equal(state[f"model.layers.{layer}.mlp.experts.down_proj"], stacked(expected, layer, *down))
    whole = sum(value.numel() * 2 for name, value in state.items() if ".layers." in name)
    experts = sum(value.numel() * 2 for value in expected.values())
    assert model.describe()["packed_bytes"] < whole - experts / 2


@pytest.mark.parametrize("renamed", [str, as_gptqmodel_names_them])
def test_requantised_experts_are_unpacked_joined_and_packed_again(
    tmp_path: Path, renamed: Callable[[str], str]
) -> None:
    expected = packed_checkpoint(tmp_path, "mixtral", pack_gptq, GPTQ, renamed)
    state = dense_state(load_model(ModelSpec(str(tmp_path), "none", "bfloat16", "cpu", requantize=True)))
    for layer in range(3):
        assert torch.equal(
            state[f"model.layers.{layer}.mlp.experts.gate_up_proj"], stacked(expected, layer, "w1", "w3")
        )


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    packed_checkpoint(tmp_path, "mixtral", pack_gptq, GPTQ)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if ".1.block_sparse_moe.experts.2.w3." in name]:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.gate_up_proj lacks part 1 of expert 2"):
        load_model(ModelSpec(str(tmp_path), dtype="bfloat16", device="cpu"))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_what_transformers_saves_of_a_mixture_in_four_bits(tmp_path: Path, family: str) -> None:
    """Its attention is packed; the experts, which bitsandbytes does not know, are dense in the file and stay so."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    exact = save_model(tmp_path / "exact", family).state_dict()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", quantization_config=config, dtype=torch.bfloat16)
    saved.save_pretrained(tmp_path / "saved")
    copy_tokenizer(tmp_path / "exact", tmp_path / "saved")
    model = load_model(ModelSpec(str(tmp_path / "saved"), "4bit", "bfloat16", "cpu"))
    check_planned(model)
    state = dense_state(model)
    name = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(state[name], exact[name])
    name = "model.layers.1.self_attn.o_proj.weight"
    assert not torch.equal(state[name], exact[name])
    assert torch.isfinite(logits_of(model)).all()
