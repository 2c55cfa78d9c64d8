"""Items of random tokens, and an evaluator that shares no code with the package."""

from __future__ import annotations

import random

import numpy as np
import torch

from lowmem_layers.tasks.items import EncodedChoice, EncodedItem


def random_items(n_items, seed=0, context=(2, 11), vocabulary=90):
    """Make items of 2 to 4 choices and uneven lengths; some choices share a context, one item has two contexts."""
    rng = random.Random(seed)

    def draw(n):
        return tuple(rng.randrange(3, vocabulary) for _ in range(n))

    items = []
    for index in range(n_items):
        contexts = [draw(rng.randrange(*context))] * rng.choice([2, 3, 4])
        if index == 1:
            contexts[0] = (*contexts[0][:-1], 3)
        choices = []
        for each in contexts:
            n_scored = rng.choice([1, 2, 3])
            choices.append(EncodedChoice(each + draw(n_scored), n_scored))
        items.append(EncodedItem("random", str(index), tuple(choices), 0, str(index)))
    return items


def zero_branch(family):
    """Return a forward hook that turns a sublayer's output into zeros (or into the residual it was handed)."""

    def hook(module, args, output):
        hands_on_residual = family == "bloom" or (family == "mpt" and type(module).__name__ == "MptMLP")
        replaced = args[1].clone() if hands_on_residual else None
        if isinstance(output, tuple):
            return (replaced if hands_on_residual else torch.zeros_like(output[0]), *output[1:])
        return replaced if hands_on_residual else torch.zeros_like(output)

    return hook


@torch.inference_mode()
def hooked_loglikelihoods(module, sublayers, items, coalitions, family=""):
    """Score by whole forward passes of a plain transformers model, sublayers zeroed by hooks on their output."""
    scores = []
    for removed in coalitions:
        branches = [
            part for p in removed for part in (sublayers[p] if isinstance(sublayers[p], list) else [sublayers[p]])
        ]
        handles = [part.register_forward_hook(zero_branch(family)) for part in branches]
        scores.append([[score_choice(module, choice) for choice in item.choices] for item in items])
        for handle in handles:
            handle.remove()
    return [np.array([by_item[i] for by_item in scores]) for i in range(len(items))]


def score_choice(module, choice):
    logits = module(input_ids=torch.tensor([choice.tokens[:-1]])).logits[0]
    logprobs = torch.log_softmax(logits.double(), -1)
    start = len(choice.tokens) - 1 - choice.n_scored
    return sum(logprobs[start + j, token].item() for j, token in enumerate(choice.tokens[-choice.n_scored :]))
