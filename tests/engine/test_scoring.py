"""The head gives the model's own log-probabilities, whatever the number of rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowmem_layers.engine.scoring import Head, pairs_of
from lowmem_layers.engine.trie import Row, Target
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import own_logits
from tests import families

ROW = Row((3, 4, 5, 6), (-1, 0, 1, 1), (Target(0, 0, (1, 2), (5, 9)), Target(0, 1, (1,), (6,))))


def expected(model, states):
    logprobs = own_logits(model.module, model.anatomy.layers, states.flatten(0, 1)).double().log_softmax(-1)
    at = logprobs.view(*states.shape[:2], -1)
    return torch.stack([at[:, 0, 5] + at[:, 1, 9], at[:, 0, 6]], 1)


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma2", "cohere"])
@pytest.mark.parametrize("softmax_rows", [1, 5, 64])
def test_log_likelihoods_equal_the_models_own_head(family, softmax_rows):
    model = DecoderModel(families.tiny_model(family))
    model.examine()
    states = 5 * torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(0))
    found = Head(model, softmax_rows).loglikelihoods([states], pairs_of([ROW], len(ROW), ROW.scored_nodes))
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected(model, states), rtol=0, atol=1e-5)


def test_blocks_of_the_log_softmax_change_no_bit():
    model = DecoderModel(families.tiny_model("llama"))
    model.examine()
    states = torch.randn(7, 2, 32, generator=torch.Generator().manual_seed(0))
    pairs = pairs_of([ROW], len(ROW), ROW.scored_nodes)
    one, three, many = (Head(model, rows).loglikelihoods([states[:3], states[3:]], pairs) for rows in (1, 3, 100))
    assert torch.equal(one, three)
    assert torch.equal(one, many)


def test_pieces_of_the_logits_change_no_bit():
    """Of a text more positions are scored than logits are made of at once, also in a piece of a few rows at the end."""
    model = DecoderModel(families.tiny_model("llama"))
    model.examine()
    states = torch.randn(20, 2, 32, generator=torch.Generator().manual_seed(0))
    pairs, head = pairs_of([ROW], len(ROW), ROW.scored_nodes), Head(model, 5)
    whole = head.loglikelihoods([states], pairs)
    assert all(torch.equal(head.loglikelihoods([states], pairs, rows), whole) for rows in (1, 17, 39, 40, 100))


def test_the_likeliest_tokens_have_as_much_only_where_they_are_the_choices_own():
    model = DecoderModel(families.tiny_model("llama"))
    model.examine()
    states = 5 * torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(0))
    logits = own_logits(model.module, model.anatomy.layers, states.flatten(0, 1)).view(6, 2, -1)
    best = logits[0].argmax(-1).tolist()  # the first state would write these two
    row = Row((3, 4, 5), (-1, 0, 1), (Target(0, 0, (1, 2), tuple(best)), Target(0, 1, (1, 2), tuple(best), True)))
    found = Head(model, 5).loglikelihoods([states], pairs_of([row], len(row), row.scored_nodes))
    most = logits.double().log_softmax(-1).max(-1).values.sum(1)
    assert torch.allclose(found[:, 1], most, rtol=0, atol=1e-5)
    assert (found[:, 0] >= found[:, 1]).tolist() == [(each.argmax(-1).tolist() == best) for each in logits]
    model.module.lm_head.weight.zero_()  # all tokens have the same logit: only the first is the likeliest
    first, second = (
        Row((3, 4), (-1, 0), (Target(0, 0, (1,), (token,)), Target(0, 1, (1,), (token,), True))) for token in (0, 1)
    )
    for row, is_first in ((first, True), (second, False)):
        found = Head(model, 5).loglikelihoods([states[:, :1]], pairs_of([row], len(row), row.scored_nodes))
        assert (found[:, 0] >= found[:, 1]).tolist() == [is_first] * 6


def test_pairs_name_every_scored_token_once_with_its_owner():
    pairs = pairs_of([ROW, ROW], 6, [1, 2, 7, 8])
    assert list(zip(pairs.nodes.tolist(), pairs.tokens.tolist(), pairs.choices.tolist(), strict=True)) == [
        (0, 5, 0), (0, 6, 1), (1, 9, 0), (2, 5, 2), (2, 6, 3), (3, 9, 2),
    ]  # fmt: skip
    assert pairs.owners == ((0, 0), (0, 1), (0, 0), (0, 1))
    assert np.all(np.diff(pairs.nodes) >= 0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "phi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_model_in_16_bits_are_not_rounded_to_16_bits(family, dtype):
    """Against the same head in float64 on the same states: only the final norm's own rounding is left."""
    model = DecoderModel(families.tiny_model(family).to(dtype))
    model.examine()
    states = (20 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits = own_logits(model.module, model.anatomy.layers, states)
    assert logits.dtype == torch.float32
    seen = []
    head = model.module.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    own_logits(model.module, model.anatomy.layers, states)
    handle.remove()
    bias = None if head.bias is None else head.bias.double()
    exact = torch.nn.functional.linear(seen[0].double(), head.weight.double(), bias)
    raw = []
    handle = head.register_forward_hook(lambda _m, _a, output: raw.append(output))
    own_logits(model.module, model.anatomy.layers, states)
    handle.remove()
    assert torch.allclose(raw[0].double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(raw[0], raw[0].to(dtype).float()), "16 bits would not have been enough"
