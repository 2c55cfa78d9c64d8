"""A whole GPTQ checkpoint is unpacked visit by visit into the weights its tensors stand for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.formats.scaled import fields
from lowmem_layers.model.homes.store import Visit
from tests.model.conftest import save_model


@pytest.mark.parametrize(("offload", "act_order"), [("cpu", False), ("disk", True)])
def test_a_gptq_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str, act_order: bool) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    save_model(folder, "llama")
    tensors = load_file(folder / "model.safetensors")
    expected: dict[str, torch.Tensor] = {}
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        stem = name.removesuffix(".weight")
        parts = {
            "qweight": torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), generator=random).int(),
            "qzeros": torch.full((inputs // 32, outputs // 8), 0x77777777, dtype=torch.int32),
            "scales": torch.rand(inputs // 32, outputs, generator=random).half(),
            "g_idx": (torch.arange(inputs) // 32).int(),
        }
        if act_order:
            parts["g_idx"] = parts["g_idx"][torch.randperm(inputs, generator=random)]
        tensors |= {f"{stem}.{part}": value for part, value in parts.items()}
        codes = fields(parts["qweight"].T.contiguous(), 4) - 8
        expected[name] = (codes * parts["scales"].float().T[:, parts["g_idx"].long()]).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    (folder / "config.json").write_text(json.dumps(config))

    model = load_model(ModelSpec(str(folder), "4bit", "bfloat16", "cpu", offload=offload))  # type: ignore[arg-type]
    assert model.describe()["quantisation"]["used"] == "GPTQ 4-bit"
    seen = 0
    for visit in model.store.sweep([Visit(index, frozenset({"attn", "ffn"})) for index in range(3)]):
        for name, value in model.module.named_parameters():
            if name in expected and f".{visit.layer}." in name:
                assert torch.equal(value, expected[name]), name
                seen += 1
    assert seen == len(expected) == 21


GPTQ_FOLDER = os.environ.get("LOWMEM_LAYERS_GPTQ")


@pytest.mark.skipif(
    not GPTQ_FOLDER, reason="needs LOWMEM_LAYERS_GPTQ: checkpoints and FILEs as benchmarks/gptq_parity.py makes them"
)
def test_checkpoints_of_gptqmodel_are_its_own_dequantisation_to_the_bit() -> None:
    """CHECKPOINT/ and, beside it, CHECKPOINT.safetensors with the dense weights that gptqmodel makes of it."""
    from benchmarks.gptq_parity import unpacked

    references = sorted(Path(GPTQ_FOLDER or "").glob("*.safetensors"))
    assert references
    for file in references:
        found, expected = unpacked(file.with_suffix("")), load_file(file)
        assert len(expected) > 0
        for name, weight in expected.items():
            assert torch.equal(found[name], weight), f"{file.stem}: {name}"
