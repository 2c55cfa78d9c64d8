"""Loading layer by layer gives transformers' own model, whatever the format and wherever the weights live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.homes.store import Visit
from tests.model.conftest import four_bit_exact, save_model, tiny_model

FAMILIES = ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"]
MOE = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"]
BOTH = frozenset({"attn", "ffn"})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))


def token_ids() -> torch.Tensor:
    return torch.arange(24).view(2, 12)


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode(), model.streaming():
        return model.module(token_ids()).logits


def dense_state(model: Any) -> dict[str, torch.Tensor]:
    """Collect every weight of a streamed model as a visit sees it."""
    state: dict[str, torch.Tensor] = {}
    for visit in model.store.sweep([Visit(index, BOTH) for index in range(len(model.players) // 2)]):
        for name, value in model.module.state_dict().items():
            if f".{visit.layer}." in name or visit.layer == 0:
                state[name] = value.clone()
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_unquantised_is_the_models_own_forward_to_the_bit(family: str, tmp_path: Path) -> None:
    exact = save_model(tmp_path, family, torch.float32)
    loaded = load_model(ModelSpec(str(tmp_path), dtype="float32", device="cpu"))
    with torch.inference_mode():
        assert torch.equal(logits_of(loaded), exact(token_ids()).logits)


@pytest.mark.parametrize("family", ["llama", *MOE])
def test_four_bit_is_bitsandbytes_quantisation_of_every_linear_weight_and_expert(family: str, tmp_path: Path) -> None:
    exact = save_model(tmp_path, family).state_dict()
    state = dense_state(load_model(ModelSpec(str(tmp_path), "4bit", "bfloat16", "cpu")))
    quantised = 0
    for name, value in exact.items():
        expected = value
        if not torch.equal(state[name], value):
            codes, about = quantize_4bit(value.contiguous(), blocksize=64, quant_type="nf4")
            expected = four_bit_exact(codes, about, torch.bfloat16)
            quantised += 1
        assert torch.equal(state[name], expected), name
    per_layer = {"llama": 7, "mixtral": 6, "qwen3_moe": 6, "gpt_oss": 6}
    assert quantised == (per_layer[family] * 3 if family in per_layer else quantised)
    if family in MOE:
        name = next(name for name in exact if name.endswith("experts.down_proj"))
        assert not torch.equal(state[name], exact[name])


def test_routers_norms_and_head_stay_as_they_are(tmp_path: Path) -> None:
    exact = save_model(tmp_path, "mixtral").state_dict()
    state = dense_state(load_model(ModelSpec(str(tmp_path), "8bit", "bfloat16", "cpu")))
    for name in exact:
        if "norm" in name or name.endswith("mlp.gate.weight") or "layers" not in name:
            assert torch.equal(state[name], exact[name]), name


@pytest.mark.parametrize("quant", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_every_home_gives_the_same_bits(family: str, quant: Any, tmp_path: Path) -> None:
    save_model(tmp_path, family)
    spec = {"quant": quant, "dtype": "bfloat16", "device": "cpu"}
    in_memory = load_model(ModelSpec(str(tmp_path), **spec, offload="cpu", cache=False))
    on_disk = load_model(ModelSpec(str(tmp_path), **spec, offload="disk"))
    from_cache = load_model(ModelSpec(str(tmp_path), **spec, offload="disk"))
    unkept = load_model(ModelSpec(str(tmp_path), **spec, offload="disk", cache=False))
    expected = logits_of(in_memory)
    assert on_disk.describe()["home"] == "disk"
    for other in (on_disk, from_cache, unkept):
        assert torch.equal(logits_of(other), expected)
        assert torch.equal(logits_of(other), expected)  # a second sweep over the same buffers


def test_shards_are_read_as_one_model(llama_folder: Path) -> None:
    assert len(list(llama_folder.glob("*.safetensors"))) > 1
    exact = tiny_model("llama")
    loaded = load_model(ModelSpec(str(llama_folder), dtype="bfloat16", device="cpu"))
    with torch.inference_mode():
        assert torch.equal(logits_of(loaded), exact(token_ids()).logits)


def test_a_second_copy_of_a_tied_weight_is_left_out(tmp_path: Path) -> None:
    """Some checkpoints store the head that their config ties to the embedding; another one than that is refused."""
    from safetensors.torch import load_file, save_file

    exact = save_model(tmp_path, "llama", tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    spec = ModelSpec(str(tmp_path), dtype="bfloat16", device="cpu", cache=False)
    with torch.inference_mode():
        assert torch.equal(logits_of(load_model(spec)), exact(token_ids()).logits)
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not model\.embed_tokens\.weight") as caught:
        load_model(spec)
    assert "tie_word_embeddings" in caught.value.hint


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_bitsandbytes_four_bit_checkpoint_keeps_its_packing(
    llama_folder: Path, tmp_path: Path, quant_type: str, double_quant: bool
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    saved = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config, dtype=torch.bfloat16)
    saved.save_pretrained(tmp_path)
    expected = {
        f"{name}.weight": four_bit_exact(module.weight.data, module.weight.quant_state, torch.bfloat16)
        for name, module in saved.named_modules()
        if hasattr(getattr(module, "weight", None), "quant_state")
    }
    copy_tokenizer(llama_folder, tmp_path)
    lines: list[str] = []
    loaded = load_model(ModelSpec(str(tmp_path), "4bit", "bfloat16", "cpu"), lines.append)
    state = dense_state(loaded)
    assert len(expected) == 21
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert f"bitsandbytes {quant_type}, kept as it is" in lines[0]
    assert loaded.describe()["quantisation"]["kept"] is True


def test_a_bitsandbytes_eight_bit_checkpoint_keeps_its_packing(llama_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    saved = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config, dtype=torch.bfloat16)
    saved.save_pretrained(tmp_path)
    copy_tokenizer(llama_folder, tmp_path)
    state = dense_state(load_model(ModelSpec(str(tmp_path), "8bit", "float32", "cpu")))
    from safetensors.torch import load_file

    raw = load_file(tmp_path / "model.safetensors")
    stems = [name.removesuffix(".SCB") for name in raw if name.endswith(".SCB")]
    assert len(stems) == 21
    for stem in stems:
        expected = raw[f"{stem}.weight"].double() * raw[f"{stem}.SCB"].double()[:, None] / 127
        torch.testing.assert_close(state[f"{stem}.weight"].double(), expected, rtol=3e-7, atol=0)


def test_another_width_is_refused_unless_requantised(llama_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config).save_pretrained(tmp_path)
    copy_tokenizer(llama_folder, tmp_path)
    with pytest.raises(ModelError, match="--quant 4bit, but the checkpoint already is 8-bit") as caught:
        load_model(ModelSpec(str(tmp_path), "4bit", "bfloat16", "cpu"))
    assert "--requantize" in caught.value.hint
    again = load_model(ModelSpec(str(tmp_path), "4bit", "bfloat16", "cpu", requantize=True))
    assert again.describe()["quantisation"]["used"] == "nf4"


def test_layers_are_empty_between_visits(llama_folder: Path) -> None:
    loaded = load_model(ModelSpec(str(llama_folder), "4bit", "bfloat16", "cpu"))
    weight = loaded.module.model.layers[0].mlp.up_proj
    assert weight.weight.numel() == 0
    for _ in loaded.store.sweep([Visit(0, frozenset({"ffn"}))]):
        assert weight.weight.shape == (96, 64)
        assert loaded.module.model.layers[0].self_attn.q_proj.weight.numel() == 0
    assert weight.weight.numel() == 0


def test_an_abandoned_sweep_leaves_nothing_behind(llama_folder: Path) -> None:
    loaded = load_model(ModelSpec(str(llama_folder), "4bit", "bfloat16", "cpu", offload="disk"))
    sweep = loaded.store.sweep([Visit(index, BOTH) for index in range(3)])
    next(sweep)
    sweep.close()  # type: ignore[attr-defined]
    assert loaded.module.model.layers[0].mlp.up_proj.weight.numel() == 0
    assert torch.isfinite(logits_of(loaded)).all()


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
