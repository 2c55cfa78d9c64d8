"""Whole checkpoints in formats of codes and scales: experts keep their packing, and the model computes with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model import ModelSpec, load_model
from tests.model.conftest import save_model
from tests.model.test_formats_scaled import words
from tests.model.test_load import dense_state, logits_of, token_ids
from tests.model.test_packed_mixtures import Tensors, check_planned, packed_checkpoint, stacked

FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "modules_to_not_convert": ["self_attn"]}
W4A16 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 16}}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))


def pack_fp8(stem: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    rows, columns = weight.shape
    codes = (weight.float() * 100).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // 32), -(-columns // 32)) * 0.02
    tensors |= {f"{stem}.weight": codes, f"{stem}.weight_scale_inv": scales}
    grid = scales.repeat_interleave(32, 0).repeat_interleave(32, 1)[:rows, :columns]
    return (codes.float() * grid).bfloat16()


def pack_awq(stem: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    rows, columns = weight.shape
    codes, scales = torch.randint(0, 16, (rows, columns)), torch.rand(rows, columns // 16).half() * 0.01
    shuffled = codes.T.reshape(columns, -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)
    tensors |= {f"{stem}.qweight": words(shuffled, 4), f"{stem}.scales": scales.T.contiguous()}
    tensors[f"{stem}.qzeros"] = torch.full((columns // 16, rows // 8), 0x77777777, dtype=torch.int32)
    return ((codes - 7) * scales.float().repeat_interleave(16, 1)).bfloat16()


def pack_w4a16(stem: str, weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    rows, columns = weight.shape
    codes, scales = torch.randint(0, 16, (rows, columns)), torch.rand(rows, columns // 16).bfloat16() * 0.01
    tensors |= {f"{stem}.weight_packed": words(codes, 4), f"{stem}.weight_scale": scales}
    tensors[f"{stem}.weight_shape"] = torch.tensor([rows, columns])
    return ((codes - 8) * scales.float().repeat_interleave(16, 1)).bfloat16()


@pytest.mark.parametrize(
    ("family", "pack", "about", "offload"),
    [
        pytest.param("qwen3_moe", pack_fp8, FP8, "disk", id="qwen3_moe-fp8"),
        pytest.param("deepseek_v3", pack_fp8, FP8, "cpu", id="deepseek_v3-fp8"),
        pytest.param("qwen3_moe", pack_awq, AWQ, "cpu", id="qwen3_moe-awq"),
        pytest.param("qwen3_moe", pack_w4a16, W4A16, "disk", id="qwen3_moe-w4a16"),
    ],
)
def test_experts_keep_their_packing(tmp_path: Path, family: str, pack, about: object, offload: str) -> None:
    folder = tmp_path / "model"
    expected = packed_checkpoint(folder, family, pack, about)
    said: list[str] = []
    spec = ModelSpec(str(folder), dtype="bfloat16", device="cpu", offload=offload)  # type: ignore[arg-type]
    model = load_model(spec, said.append)
    assert model.describe()["quantisation"]["kept"] is True
    assert any("32: weights as stored, activations not" in line for line in said) == (about is FP8)
    check_planned(model)
    state = dense_state(model)
    for layer in range(1, 3):
        stem = f"model.layers.{layer}.mlp.experts"
        assert torch.equal(state[f"{stem}.gate_up_proj"], stacked(expected, layer, "gate_proj", "up_proj"))
        assert torch.equal(state[f"{stem}.down_proj"], stacked(expected, layer, "down_proj"))


def test_gpt_oss_as_it_is_published(tmp_path: Path) -> None:
    """Logits are those of transformers with the weights that it makes of the blocks itself."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    folder = tmp_path / "model"
    exact = save_model(folder, "gpt_oss")
    tensors, dense = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 123, blocks.shape[:-1], dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        dense[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))
    exact.load_state_dict(dense, strict=False)
    model = load_model(ModelSpec(str(folder), "4bit", "bfloat16", "cpu", offload="disk"))
    assert model.describe()["quantisation"]["used"] == "MXFP4"
    check_planned(model)
    with torch.inference_mode():
        assert torch.equal(logits_of(model), exact(token_ids()).logits)


def test_codes_that_lost_their_scales_are_refused(tmp_path: Path) -> None:
    packed_checkpoint(tmp_path, "qwen3_moe", pack_fp8, FP8)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"2\.up_proj\.weight holds numbers of type float8_e4m3fn, but no"):
        load_model(ModelSpec(str(tmp_path), dtype="bfloat16", device="cpu"))


def test_packed_weights_are_unpacked_and_joined_on_request(tmp_path: Path) -> None:
    expected = packed_checkpoint(tmp_path, "qwen3_moe", pack_fp8, FP8)
    state = dense_state(load_model(ModelSpec(str(tmp_path), "none", "bfloat16", "cpu", requantize=True)))
    found = state["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(found, stacked(expected, 1, "gate_proj", "up_proj"))
