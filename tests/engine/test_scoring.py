"""The head in slices equals the model's own; log-sum-exp is right where it is hard."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lowmem_layers.engine import scoring
from lowmem_layers.engine.scoring import Head, pairs_of
from lowmem_layers.engine.trie import Row, Target
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.model.forward import own_logits

_spec = importlib.util.spec_from_file_location("families", Path(__file__).parents[1] / "families.py")
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)

ROW = Row((3, 4, 5, 6), (-1, 0, 1, 1), (Target(0, 0, (1, 2), (5, 9)), Target(0, 1, (1,), (6,))))


def expected(model, states):
    logprobs = own_logits(model.module, model.anatomy.layers, states.flatten(0, 1)).double().log_softmax(-1)
    at = logprobs.view(*states.shape[:2], -1)
    return torch.stack([at[:, 0, 5] + at[:, 1, 9], at[:, 0, 6]], 1)


@pytest.mark.parametrize(("family", "plain"), [("llama", True), ("gptj", True), ("gemma2", False), ("cohere", False)])
@pytest.mark.parametrize("slice_width", [7, 97, 4096])
def test_log_likelihoods_equal_the_models_own_head(family, plain, slice_width):
    model = DecoderModel(families.tiny_model(family))
    head = Head(model, slice_width)
    states = 5 * torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(0))
    pairs = pairs_of([ROW], len(ROW), ROW.scored_nodes, model.device)
    assert head.is_plain is plain
    assert torch.allclose(head.loglikelihoods(states, pairs), expected(model, states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normaliser_is_right_for_peaked_flat_and_masked_rows(dtype):
    logits = torch.zeros(4, 300, dtype=dtype)
    logits[1, 7] = 80.0
    logits[2] = -200.0
    logits[3, :200] = float("-inf")
    found = scoring._log_normaliser(logits)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), logits.double().logsumexp(-1), rtol=0, atol=2e-5)
