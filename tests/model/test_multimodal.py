"""Of a multimodal folder the text decoder is taken; its towers are neither built nor read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lowmem_layers.engine import ready_engine, reference_loglikelihoods
from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.skeleton import Absent
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


def test_the_text_decoder_of_a_multimodal_folder_is_scored_without_its_towers(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**TOWER),
        image_token_index=383,
    )  # fmt: skip
    torch.manual_seed(0)
    whole = transformers.LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    whole.model.vision_tower.apply(lambda part: [value.fill_(float("nan")) for value in part.parameters()])
    whole.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = load_model(ModelSpec(str(tmp_path / "model"), dtype="float32", device="cpu"))
    assert not any("vision" in name or "projector" in name for name in model.module.state_dict())
    engine, items = ready_engine(model), random_items(3)
    layers = whole.model.language_model.layers
    sublayers = [part for layer in layers for part in (layer.self_attn, layer.mlp)]
    coalitions = [(), (0,), (1, 2), (0, 1, 2, 3)]
    scores = engine.score(items, coalitions)
    for expected in (
        reference_loglikelihoods(model, items, coalitions), hooked_loglikelihoods(whole, sublayers, items, coalitions),
    ):  # fmt: skip
        assert max(abs(mine - other).max() for mine, other in zip(scores, expected, strict=True)) < 1e-5


def test_text_that_goes_through_what_was_left_out_is_refused():
    with pytest.raises(ModelError, match="text goes through adapter"):
        Absent("adapter")(torch.zeros(1))
