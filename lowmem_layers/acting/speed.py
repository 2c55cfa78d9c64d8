"""How fast a model's own forward is, with and without some sublayers, on the same tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.model.accelerators import wait_for
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks.items import EncodedItem

_ROUNDS = 3
_ROWS, _TOKENS = 4, 64


@torch.inference_mode()
def tokens_a_second(
    model: DecoderModel,
    items: Sequence[EncodedItem],
    removals: Sequence[Removed],
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time whole forward passes of the first items' tokens under each removal: the median of rounds taken in turns.

    A removed sublayer is neither computed nor brought in. Shapes: one number for each removal.
    """
    tokens = [token for item in items for token in item.choices[0].tokens]
    tokens = (tokens * (1 + _ROWS * _TOKENS // max(1, len(tokens))))[: _ROWS * _TOKENS]
    ids = torch.tensor(tokens, device=model.device).view(_ROWS, _TOKENS)  # (B, T)
    times: list[list[float]] = [[] for _ in removals]
    for turn in range(_ROUNDS + 1):  # the first round only warms up
        for place, removed in enumerate(removals):
            start = clock()
            with model.removed(tuple(removed)), model.streaming(tuple(removed)):
                model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            wait_for(model.device)
            if turn:
                times[place].append(clock() - start)
    return [_ROWS * _TOKENS / median(each) for each in times]
