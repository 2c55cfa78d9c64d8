"""What is foreseen of a model without its weights is what its loaded layers turn out to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from lowmem_layers.errors import EngineError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.anatomy.weightless import foresee_parallel
from lowmem_layers.model.checkpoint.skeleton import build_skeleton
from lowmem_layers.model.shape import shape_of
from tests.families import FAMILIES, LAYERS, VOCABULARY, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_without_weights_is_that_of_the_examined_model(family):
    module = tiny_model(family)
    foreseen = shape_of(module.config, "none", torch.float32)
    model = DecoderModel(module)
    assert model.shape == foreseen
    programs = model.examine()
    assert {program.parallel for program in programs} == {foreseen.parallel}
    assert model.shape == foreseen
    assert (foreseen.vocabulary, foreseen.itemsize) == (VOCABULARY, 4)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_a_token_meets_the_experts_it_chose_and_all_other_matrices(family):
    module = tiny_model(family)
    config = module.config
    total = {"qwen2_moe": "num_experts", "deepseek_v3": "n_routed_experts"}.get(family, "num_local_experts")
    chosen = config.num_experts_per_tok / getattr(config, total)
    shape = DecoderModel(module).shape
    layer = module.model.layers[LAYERS - 1]
    met = 0
    for name, weight in layer.mlp.named_parameters():
        share = chosen if name.startswith("experts.") else 1
        met += weight.numel() * share if weight.dim() > 1 else 0
    assert shape.macs[-1] == met
    assert shape.macs[-2] == sum(weight.numel() for weight in layer.self_attn.parameters() if weight.dim() > 1)


class Curious(nn.Module):
    """A decoder layer that looks at its mask before it calls its attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp

    def forward(self, hidden_states, attention_mask):
        attended = hidden_states + self.self_attn(hidden_states, attention_mask=attention_mask + 0)[0]
        return attended + self.mlp(attended)


def test_a_layer_that_cannot_be_looked_through_is_taken_for_a_parallel_one():
    """Its states then take twice the memory: what is foreseen is never too little."""
    anatomy = dissect(build_skeleton(tiny_model("llama").config, torch.float32))
    assert not foresee_parallel(anatomy, 32, torch.float32)
    layers = tuple(replace(layer, layer=Curious(layer.layer)) for layer in anatomy.layers)
    assert foresee_parallel(replace(anatomy, layers=layers), 32, torch.float32)


def test_looking_leaves_the_model_as_it_was():
    module = tiny_model("gpt_neox")
    before = {name: id(each) for name, each in module.named_modules()}
    foresee_parallel(dissect(module), 32, torch.float32)
    assert {name: id(each) for name, each in module.named_modules()} == before
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.modules())


def test_the_examination_settles_what_was_foreseen():
    module = tiny_model("llama")
    unsure = replace(DecoderModel(module).shape, parallel=True)
    model = DecoderModel(module, shape=unsure)
    assert model.shape.parallel
    model.examine()
    assert not model.shape.parallel
    assert model.describe()["parallel_sublayers"] is False


def test_nobody_is_told_how_to_drive_an_unexamined_model():
    model = DecoderModel(tiny_model("llama"))
    for ask in (lambda: model.programs, lambda: model.anatomy):
        with pytest.raises(EngineError, match="not examined") as caught:
            ask()
        assert "examine()" in caught.value.hint
    assert model.examine() is model.examine()


def test_weights_that_are_elsewhere_leave_no_shape_to_be_taken():
    module = tiny_model("llama")
    module.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(ValueError, match="give the shape"):
        DecoderModel(module)
