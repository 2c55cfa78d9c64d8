"""Sublayers are found by structure, removed in place, and come back as the very same modules."""

from __future__ import annotations

import pytest
import torch
import transformers

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.anatomy.removal import without
from tests import families

MOE = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_has_two_sublayers_a_layer_in_order(family):
    found = dissect(families.tiny_model(family))
    names = [player.name for player in found.players]
    kinds = ["ffn", "moe", "moe"] if family == "deepseek_v3" else ["moe" if family in MOE else "ffn"] * 3
    assert names == [name for layer in range(3) for name in (f"attn.{layer}", f"{kinds[layer]}.{layer}")]


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "gpt_oss"])
def test_removed_modules_come_back_the_same_even_after_an_exception(family):
    model = DecoderModel(families.tiny_model(family))
    model.examine()
    before = {name: id(module) for name, module in model.module.named_modules()}
    ids = torch.arange(3, 9)[None]
    logits = model.module(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), without(model.anatomy, (0, 3)):
        _ = model.module(input_ids=ids).logits, 1 // 0
    with without(model.anatomy, (0, 3)):
        without_them = model.module(input_ids=ids).logits
    assert not torch.allclose(without_them, logits)
    assert {name: id(module) for name, module in model.module.named_modules()} == before
    assert torch.equal(model.module(input_ids=ids).logits, logits)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_with_everything_removed_only_the_embedding_and_the_head_are_left(family):
    model = DecoderModel(families.tiny_model(family))
    model.examine()
    a, b = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 9, 7]])
    with model.removed(tuple(range(6))):
        first, second = (model.module(input_ids=ids).logits for ids in (a, b))
    assert torch.equal(first[0, 2], second[0, 2])  # nothing carries a token to another position any more
    assert not torch.equal(first[0, 1], second[0, 1])


def test_sublayers_that_act_in_parallel_are_told_from_those_in_turn():
    models = {name: DecoderModel(families.tiny_model(name)) for name in families.FAMILIES}
    parallel = {name for name, model in models.items() if any(program.parallel for program in model.examine())}
    assert parallel == {
        "phi", "stablelm-parallel", "cohere", "cohere2", "gpt_neox", "gptj", "falcon", "falcon-new",
    }  # fmt: skip


def test_a_model_without_decoder_layers_in_one_list_is_refused():
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_decoder_layers=3, num_heads=4
    )
    with pytest.raises(RemovalError, match="decoder layers"):
        dissect(transformers.T5ForConditionalGeneration(config))


def test_the_models_window_follows_the_config():
    assert DecoderModel(families.tiny_model("llama")).max_length == 64
    assert DecoderModel(families.tiny_model("gpt2")).max_length == 64
