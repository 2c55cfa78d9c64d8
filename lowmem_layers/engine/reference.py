"""The other route to every number: one whole forward pass of the model's own code for each coalition and each choice.

Nothing is shared here: the sublayers are removed (or changed) in place, every choice is a sequence of its own without
padding, and the log-softmax runs over whole rows of logits (in float32 where the model computes in 16 bits, see
`wide_head`). The sweep is checked against it when a run starts, in the tests and in the benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from lowmem_layers.engine.changes import Changes, applied
from lowmem_layers.engine.lockstep import Pass, run_in_step
from lowmem_layers.game.players.tree import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import wide_head
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem


@torch.inference_mode()
def reference_loglikelihoods(
    model: DecoderModel, items: Sequence[EncodedItem], coalitions: Sequence[Removed], changes: Changes | None = None
) -> list[np.ndarray]:
    """Score items by whole forward passes; without `changes`, sublayers are removed.

    Shapes: per item (coalitions, choices), float64 nats.

    Raises:
        EngineError: the model was not examined.
    """

    def score(choice: EncodedChoice, removed: Removed) -> float:
        return run_in_step(model, [reference_pass(model, choice, removed, changes)])[0]

    return [np.array([[score(choice, removed) for choice in item.choices] for removed in coalitions]) for item in items]


def reference_pass(model: DecoderModel, choice: EncodedChoice, removed: Removed, changes: Changes | None) -> Pass:
    """Make the whole forward pass that scores one choice under one coalition. It gives a number in nats."""

    def score() -> float:
        ids = torch.tensor([choice.tokens[:-1]], device=model.device)  # (1, T)
        logits = model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)  # (T, V)
        steps = wide[-choice.n_scored :].log_softmax(-1)  # (scored, V)
        wanted = torch.tensor(choice.tokens[-choice.n_scored :], device=model.device)
        found = steps.gather(1, wanted[:, None])[:, 0]
        if choice.is_likeliest:  # a token that is not the first of the largest has less than it, if by one bit
            more = torch.nextafter(steps.max(1).values, torch.full_like(found, torch.inf))
            found = torch.where(steps.argmax(1) == wanted, found, more)
        return found.cpu().double().sum().item()

    @contextmanager
    def changed() -> Iterator[None]:
        absent = model.removed(removed) if changes is None else applied(model, changes, removed)
        with absent, wide_head(model.module):
            yield

    return Pass(score, changed)
