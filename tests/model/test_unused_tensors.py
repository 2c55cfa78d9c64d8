"""Every tensor of a safetensors checkpoint is applied, left out for a reason that is said, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError, ModelError, TaskError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.checkpoint.packing import own_packing, read_quantisation
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_table, weight_files
from lowmem_layers.model.checkpoint.safetensors_unused import Unused, refuse_codes
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem, check_tokens
from tests.model.conftest import save_model, tiny_config

INV_FREQ = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)  # of a head of sixteen
CAUSAL = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()


class Rotary(torch.nn.Module):
    """What the accounting looks at of a model: its config and the frequencies that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = tiny_config("llama")
        self.rotary_emb = torch.nn.Module()
        self.rotary_emb.register_buffer("inv_freq", INV_FREQ, persistent=False)


def entries(folder: Path, **tensors: torch.Tensor) -> dict[str, TensorEntry]:
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return read_table(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", INV_FREQ.bfloat16(), "rotary frequencies"),
        ("transformer.h.0.attn.bias", CAUSAL.to(torch.uint8), "causal masks"),
        ("gpt_neox.layers.0.attention.masked_bias", torch.tensor(-1e9), "old causal masks"),
        ("embeddings.position_ids", torch.arange(8).view(1, 8), "position numbers"),
        ("model.layers.0.mlp.up_proj.bias", torch.zeros(96), "biases of zeros"),
        ("model.layers.0.self_attn.k_scale", torch.tensor(0.5), "scales of a quantised cache"),
        ("model.layers.0.self_attn.k_proj.output_scale", torch.tensor([0.5]), "scales of a quantised cache"),
        ("mtp.norm.weight", torch.ones(4), "transformers' code for this model leaves them out"),
    ],
)
def test_what_is_harmless_is_left_out_and_said(tmp_path: Path, name: str, tensor: torch.Tensor, reason: str) -> None:
    unused = Unused(Rotary(), lambda found: found.startswith("mtp."))
    unused.leave_out(name, entries(tmp_path, x=tensor)["x"])
    (line,) = unused.lines()
    assert reason in line
    assert name in line


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", INV_FREQ * 2),
        ("transformer.h.0.attn.bias", ~CAUSAL),
        ("transformer.h.0.attn.bias", torch.ones(64)),
        ("model.layers.0.mlp.up_proj.bias", torch.ones(96)),
        ("model.layers.0.self_attn.k_scale", torch.ones(4)),
        ("v_head.summary.weight", torch.ones(1, 64)),
    ],
)
def test_what_may_change_numbers_is_refused_by_name(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    entry = entries(tmp_path, x=tensor)["x"]
    with pytest.raises(CheckpointError, match=f"the model has no place for the tensor {name}"):
        Unused(Rotary(), lambda _: False).leave_out(name, entry)


def test_codes_without_scales_are_refused(tmp_path: Path) -> None:
    found = entries(tmp_path, a=torch.ones(2, 2).to(torch.float8_e4m3fn), b=torch.ones(2, 2))
    refuse_codes("b", found["b"])
    with pytest.raises(CheckpointError, match="a holds numbers of type float8_e4m3fn, but no scales"):
        refuse_codes("a", found["a"])


def test_an_old_checkpoint_loads_with_one_line_for_each_reason(tmp_path: Path) -> None:
    save_model(tmp_path, "llama", tie_word_embeddings=False)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = INV_FREQ.clone()
        tensors[f"model.layers.{layer}.mlp.up_proj.bias"] = torch.zeros(96)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "consolidated.safetensors").write_bytes(b"not read")
    said: list[str] = []
    load_model(ModelSpec(str(tmp_path), dtype="float32", device="cpu", cache=False), said.append)
    assert sorted(line.partition(":")[0] for line in said if "not used" in line) == [
        "3 tensors are not used (biases of zeros, where the model has none)",
        "3 tensors are not used (rotary frequencies, which the model computes)",
    ]
    assert any(line.endswith("other files: consolidated.safetensors") for line in said)
    tensors["model.extra.weight"] = torch.ones(3)  # outside the decoder layers
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no place for the tensor model\.extra\.weight"):
        load_model(ModelSpec(str(tmp_path), dtype="float32", device="cpu", cache=False))


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(ModelError, match=r"holds a LoRA adapter \(adapter_config\.json\)") as caught:
        find_source(ModelSpec(str(tmp_path / "model")))
    assert "merge" in caught.value.hint


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    entries(tmp_path, x=torch.ones(2))
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "consolidated.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    with pytest.raises(CheckpointError, match=r"x is there twice, in a\.safetensors and b\.safetensors"):
        read_table(tmp_path)


def test_settings_of_old_writers_are_found_in_their_own_files(tmp_path: Path) -> None:
    class Plain:
        pass

    assert read_quantisation(tmp_path, Plain()) is None
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))
    own = own_packing(read_quantisation(tmp_path, Plain()))
    assert own is not None
    assert (own.label, own.settings.group_size) == ("GPTQ 4-bit", 128)
    (tmp_path / "quantize_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json is no table"):
        read_quantisation(tmp_path, Plain())


def test_token_numbers_beyond_the_vocabulary_are_refused() -> None:
    item = EncodedItem("arc_easy", "q1", (EncodedChoice((5, 255), 1), EncodedChoice((5, 256), 1)), 0, "q1")
    check_tokens([item], 257)
    with pytest.raises(TaskError, match=r"arc_easy, item 'q1': it has the token 256, the model knows 256 tokens"):
        check_tokens([item], 256)


def test_downloads_take_only_what_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    listed = [
        "config.json", "tokenizer.model", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "modeling_own.py", "chat_template.jinja", "original/params.json", "original/tokenizer.model",
        "consolidated.safetensors", "consolidated.00.pth", "pytorch_model.bin", "model.gguf", "onnx/config.json",
    ]  # fmt: skip
    asked: dict[str, object] = {}

    def download(_name: str, **options: object) -> str:
        asked.update(options)
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find_source(ModelSpec("someone/some"))
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(listed, **patterns)) == listed[:6]  # type: ignore[arg-type]
