"""The trunk's statistics are those of the full model's own forward, read off by hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowmem_layers.engine.trunk import trunk_statistics
from lowmem_layers.model.anatomy.decoder import DecoderModel
from tests.engine.conftest import random_items
from tests.families import tiny_model


def by_hooks(module, item):
    """Read off what enters and leaves each Llama-like layer and branch in one whole forward pass."""
    states, branches, handles = [], [], []
    for layer in module.model.layers:
        handles.append(layer.register_forward_pre_hook(lambda _m, args: states.append(args[0])))
        handles.append(layer.self_attn.register_forward_hook(lambda _m, _a, out: branches.append(out[0])))
        handles.append(layer.mlp.register_forward_hook(lambda _m, _a, out: branches.append(out)))
    with torch.inference_mode():
        module(input_ids=torch.tensor([item.choices[item.gold].tokens[:-1]]))
    for handle in handles:
        handle.remove()
    rows = []
    for layer, entered in enumerate(states):
        x = entered
        for added in branches[2 * layer : 2 * layer + 2]:
            cosine = torch.cosine_similarity(x, x + added, dim=-1).clamp(-1, 1)
            rows.append(
                [
                    (1 - cosine).mean(),
                    (torch.arccos(cosine) / torch.pi).mean(),
                    (added.norm(dim=-1) / x.norm(dim=-1)).mean(),
                    added.abs().max(),
                ]
            )
            x = x + added
    return np.array(rows, dtype=float).T  # (statistics, players)


@pytest.mark.parametrize("budget_bytes", [1 << 30, 1])
def test_statistics_are_those_of_a_whole_forward(budget_bytes):
    module, items = tiny_model("llama"), random_items(4)
    model = DecoderModel(module)
    model.examine()
    found = trunk_statistics(model, items, budget_bytes)
    for index, item in enumerate(items):
        expected = by_hooks(module, item)
        ours = np.array([found.block_influence, found.angular_distance, found.branch_norm, found.largest_activation])[
            :, index
        ]
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("family", ["phi", "gemma2"])
def test_a_layers_influence_is_that_of_its_own_forward(family):
    module, items = tiny_model(family), random_items(2)
    model = DecoderModel(module)
    model.examine()
    found = trunk_statistics(model, items, 1 << 30).layer_influence
    tokens = torch.tensor([items[0].choices[items[0].gold].tokens[:-1]])
    with torch.inference_mode():
        states = module(input_ids=tokens, output_hidden_states=True).hidden_states
    for layer in range(2):  # behind the last layer comes the final norm
        cosine = torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)
        assert found[0, layer] == pytest.approx(float((1 - cosine).mean()), rel=1e-3, abs=1e-6)
