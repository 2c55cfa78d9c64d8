"""Contexts longer than the window: log-likelihoods are those of the tokens that lm-evaluation-harness would keep.

The second route cuts by hand, as `HFLM._loglikelihood_tokens` does: the last max_length + 1 tokens of context and
continuation, all but the last of them fed; one forward pass of plain transformers a choice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lowmem_layers.engine import ready_engine
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.tasks import Task, encode_task
from lowmem_layers.tasks.items import make_item
from tests.model.conftest import save_model

WINDOW = 24
NATS = 1e-5  # the promise is 1e-3
LONG = "a lamp that is switched on in a dark room gives"
CONTEXTS = (LONG, LONG[: WINDOW + 2], LONG[: WINDOW - 5], "short", LONG * 3)
CHOICES = ("light", "milk and honey", "x", "y" * (WINDOW - 1))


def task() -> Task:
    items = [make_item("t", str(n), (context,) * 4, CHOICES, 0) for n, context in enumerate(CONTEXTS)]
    return Task("t", tuple(items), "acc", 0.25)


@torch.inference_mode()
def by_hand(module, tokenizer, context: str, choice: str) -> tuple[float, bool]:
    """Score one choice; say whether anything was cut."""
    start = tokenizer(context)["input_ids"]
    whole = tokenizer(f"{context} {choice}")["input_ids"]
    scored = whole[len(start) :]
    fed = whole[-(WINDOW + 1) :][:-1]
    logprobs = module(input_ids=torch.tensor([fed])).logits[0].double().log_softmax(-1)[-len(scored) :]
    return logprobs.gather(1, torch.tensor(scored)[:, None]).sum().item(), len(whole) > WINDOW + 1


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral", "gemma2"])
def loaded(request, tmp_path_factory):
    """Give a model whose window is short, ours and transformers' own, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder: Path = tmp_path_factory.mktemp(request.param)
    module = save_model(folder, request.param, torch.float32, max_position_embeddings=WINDOW)
    if request.param == "gpt2":  # positions are a table: one token more and it fails
        module.config.n_positions = module.config.max_position_embeddings = WINDOW
        module.transformer.wpe.weight = torch.nn.Parameter(module.transformer.wpe.weight[:WINDOW].clone())
        module.save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return (
        load_model(ModelSpec(str(folder), dtype="float32", device="cpu")),
        plain,
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("layout", ["auto", "rows"])
def test_loglikelihoods_of_what_the_harness_keeps(loaded, layout):
    model, plain, tokenizer = loaded
    assert model.max_length == WINDOW
    items = encode_task(task(), model.tokenizer, max_length=model.max_length)
    found = ready_engine(model, layout=layout).score(items, [()])
    expected = [[by_hand(plain, tokenizer, context, choice) for choice in CHOICES] for context in CONTEXTS]
    assert sum(cut for row in expected for _, cut in row) >= 12
    np.testing.assert_allclose([row[0] for row in found], [[v for v, _ in row] for row in expected], atol=NATS, rtol=0)


def test_another_cut_would_be_seen(loaded):
    model, plain, _ = loaded
    items = encode_task(task(), model.tokenizer, max_length=WINDOW)
    (found,) = ready_engine(model).score([items[0]], [()])
    choice = items[0].choices[0]
    shifted = torch.tensor([choice.tokens[1:-1]])
    with torch.inference_mode():
        logprobs = plain(input_ids=shifted).logits[0].double().log_softmax(-1)[-choice.n_scored :]
    other = logprobs.gather(1, torch.tensor(choice.tokens[-choice.n_scored :])[:, None]).sum().item()
    assert abs(found[0][0] - other) > 10 * NATS
