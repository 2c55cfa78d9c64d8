"""Of a multimodal folder the text decoder is taken; its towers are neither built nor read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from lowmem_layers.acting.speed import tokens_a_second
from lowmem_layers.engine import ready_engine, reference_loglikelihoods
from lowmem_layers.engine.trunk import trunk_statistics
from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.skeleton import Absent, build_skeleton
from lowmem_layers.model.load import load_model
from lowmem_layers.model.spec import ModelSpec
from tests.engine.conftest import hooked_loglikelihoods, random_items
from tests.model.conftest import tiny_tokenizer

TEXT = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14, "projection_dim": 16,
}  # fmt: skip


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**TOWER),
        image_token_index=383,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def blip2() -> Any:
    """Build a model that takes no text without a picture, but wraps a causal language model that does."""
    sizes = {name: TEXT[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = transformers.Blip2Config(
        text_config=transformers.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128),
        vision_config=transformers.Blip2VisionConfig(**TOWER),
        qformer_config=transformers.Blip2QFormerConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, encoder_hidden_size=16
        ),
        image_token_index=383,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def mllama() -> Any:
    """Build a model whose layers 1 and 3 attend to pictures alone."""
    text = {**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1, 3], "pad_token_id": 0}
    tower = {name: TOWER[name] for name in ("hidden_size", "intermediate_size", "image_size", "patch_size")}
    more = {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32, "intermediate_layers_indices": [0]}
    config = transformers.MllamaConfig(
        text_config=text, vision_config={**tower, **more, "num_hidden_layers": 2}, image_token_index=383
    )
    return transformers.MllamaForConditionalGeneration(config)


def text_layers(whole: Any, kind: str) -> list[Any]:
    """List the decoder layers that text meets, by the names of each class."""
    if kind == "blip-2":
        return list(whole.language_model.model.decoder.layers)
    layers = list(whole.model.language_model.layers)
    return [layers[0], layers[2]] if kind == "mllama" else layers


@pytest.mark.parametrize(("kind", "build"), [("llava", llava), ("blip-2", blip2), ("mllama", mllama)])
def test_the_text_decoder_of_a_multimodal_folder_is_scored_without_its_towers(tmp_path, monkeypatch, kind, build):
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    whole = build().eval().requires_grad_(False)
    aside = re.compile("vision|projector|qformer|query|cross_attn")
    for name, value in whole.named_parameters():
        if aside.search(name):
            value.fill_(float("nan"))
    whole.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = load_model(ModelSpec(str(tmp_path / "model"), dtype="float32", device="cpu"))
    assert not any(aside.search(name) for name in model.module.state_dict())
    engine, items = ready_engine(model), random_items(3)
    layers = text_layers(whole, kind)
    sublayers = [part for layer in layers for part in (layer.self_attn, layer.fc2 if kind == "blip-2" else layer.mlp)]
    names = [0, 0, 2, 2] if kind == "mllama" else [0, 0, 1, 1]
    assert [player.layer for player in model.players] == names  # the layers keep their numbers
    coalitions = [(), (0,), (1, 2), (0, 1, 2, 3)]
    scores = engine.score(items, coalitions)
    spoken = whole.language_model if kind == "blip-2" else whole
    for expected in (
        reference_loglikelihoods(model, items, coalitions), hooked_loglikelihoods(spoken, sublayers, items, coalitions),
    ):  # fmt: skip
        assert max(abs(mine - other).max() for mine, other in zip(scores, expected, strict=True)) < 1e-5
    # what acts on a run passes by the layers that text passes by
    assert min(tokens_a_second(model, items, [(), (1,)])) > 0
    assert (trunk_statistics(model, items, 1 << 30).branch_norm > 0).all()


def test_the_part_of_an_omni_folder_that_writes_text_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    text = {**TEXT, "rope_parameters": rope}
    config = transformers.Qwen2_5OmniConfig(thinker_config={"text_config": text, "vision_start_token_id": 5})
    alone = transformers.Qwen2Config(**TEXT)
    torch.manual_seed(0)
    plain = transformers.Qwen2ForCausalLM(alone).eval().requires_grad_(False)
    names = {name: name if name.startswith("lm_head") else f"model.{name[6:]}" for name in plain.state_dict()}
    tensors = {f"thinker.{names[name]}": value for name, value in plain.state_dict().items()}
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for extra in ("talker.model.norm.weight", "token2wav.x", "thinker.visual.x", "thinker.audio_tower.x"):
        tensors[extra] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(ModelSpec(str(tmp_path), dtype="float32", device="cpu"))
    items = random_items(2)
    layers = plain.model.layers
    expected = hooked_loglikelihoods(
        plain, [m for each in layers for m in (each.self_attn, each.mlp)], items, [(), (1,)]
    )
    scores = ready_engine(model).score(items, [(), (1,)])
    # for text alone, time, height and width are the same number
    assert max(abs(mine - other).max() for mine, other in zip(scores, expected, strict=True)) < 1e-5


def test_a_model_without_a_matrix_for_its_tokens_is_refused():
    config = transformers.BlipConfig(text_config={**TEXT, "bos_token_id": 1})
    with pytest.raises(ModelError, match="output embedding is not one matrix"):
        build_skeleton(config, torch.float32)


def test_text_that_goes_through_what_was_left_out_is_refused():
    with pytest.raises(ModelError, match="text goes through adapter"):
        Absent("adapter")(torch.zeros(1))
