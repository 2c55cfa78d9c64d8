"""From states behind the last layer to log-likelihoods: each distinct scored node once, log-softmax in float32.

Logits come from the model's own head path (final norm, scales, softcaps), for as many rows at once as make its matrix
product efficient; the log-softmax follows in blocks of few rows, which stay in a CPU's cache. It runs over whole
rows, as lm-evaluation-harness' does: in float32 its rounding over tens of thousands of logits reaches 1e-5 nats a
token, and only the same operation on the same rows gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lowmem_layers.engine.trie import Row
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.forward import own_logits

LEAST_ROWS = 16
"""Matrix products are made of at least so many rows: those of fewer round differently on CPUs (oneDNN, MKL), and a
coalition's numbers would depend on how many others are computed with it."""


@dataclass(frozen=True)
class Pairs:
    """What is read off the logits of a batch: K pairs of a scored node and a token, and the choice each belongs to.

    Where `likeliest`, the node's likeliest token is read instead of the pair's.

    Shapes: `nodes`, `tokens`, `choices`, `likeliest` (K,), in ascending order of nodes; `nodes` index the batch's
        scored nodes, `choices` the list `owners` of (item, choice).
    """

    nodes: np.ndarray
    tokens: np.ndarray
    choices: np.ndarray
    likeliest: np.ndarray
    owners: tuple[tuple[int, int], ...]


def pairs_of(rows: Sequence[Row], width: int, scored: Sequence[int]) -> Pairs:
    """List the pairs of a batch whose rows are `width` nodes apart."""
    place = {node: position for position, node in enumerate(scored)}
    nodes, tokens, choices, likeliest = [], [], [], []
    owners: list[tuple[int, int]] = []
    for r, row in enumerate(rows):
        for target in row.targets:
            nodes += [place[r * width + node] for node in target.nodes]
            tokens += target.tokens
            choices += [len(owners)] * len(target.nodes)
            likeliest += [target.is_likeliest] * len(target.nodes)
            owners.append((target.item, target.choice))
    order = np.argsort(nodes, kind="stable")
    columns = (np.array(column, dtype=np.int64)[order] for column in (nodes, tokens, choices, likeliest))
    return Pairs(*columns, owners=tuple(owners))


class Head:
    """A model's way from final states to log-likelihoods, `softmax_rows` rows of logits at a time."""

    def __init__(self, model: DecoderModel, softmax_rows: int) -> None:
        self._model = model
        self._softmax_rows = softmax_rows

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self._model.shape.vocabulary

    def loglikelihoods(self, parts: Iterable[torch.Tensor], pairs: Pairs, head_rows: int | None = None) -> torch.Tensor:
        """Sum the log-probabilities of every choice's tokens, over the parts into which a batch's states were cut.

        Logits are made of `head_rows` rows at once (None: of a whole part). The device is waited for once, at the end.

        Shapes: `parts` (C', S, D) each, C states in all → (C, number of choices), float64 nats, in host memory.
        """
        at: torch.Tensor | None = None
        found = []
        for states in parts:
            if at is None:
                at = torch.from_numpy(np.stack([pairs.nodes, pairs.tokens, pairs.likeliest])).to(
                    states.device
                )  # (3, K)
            found.append(self._logprobs(states, pairs, at, head_rows or states.shape[0] * states.shape[1]))
        logprobs = torch.cat(found).cpu().double()  # (C, K); a GPU would add in any order, and some have no float64
        sums = torch.zeros(len(logprobs), len(pairs.owners), dtype=torch.float64)
        return sums.index_add_(1, torch.from_numpy(pairs.choices), logprobs)

    def _logprobs(self, states: torch.Tensor, pairs: Pairs, at: torch.Tensor, head_rows: int) -> torch.Tensor:
        """Read the log-probabilities of the pairs. Shapes: `states` (C, S, D), `at` (3, K) → (C, K)."""
        n_states, n_scored, width = states.shape
        # 1) what is read: pairs of a row and a token, state by state, rows ascending
        rows = (np.arange(n_states)[:, None] * n_scored + pairs.nodes).ravel()  # (C·K,), on the host
        first = n_scored * torch.arange(n_states, device=at.device)  # (C,)
        index = torch.stack([(first[:, None] + at[0]).flatten(), *at[1:].repeat(1, n_states)])  # (3, C·K)
        asks_likeliest = bool(pairs.likeliest.any())
        # 2) the log-softmax of a block of rows, and what is read off it
        parts = []
        for start, logits in self._logits(states.reshape(-1, width), head_rows):
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            for low in range(0, len(logits), self._softmax_rows):
                block = logits[low : low + self._softmax_rows].log_softmax(-1, dtype=wide)
                begin, end = np.searchsorted(rows, [start + low, start + low + len(block)])
                row, token, likeliest = index[0, begin:end] - start - low, index[1, begin:end], index[2, begin:end]
                found = block[row, token]
                if asks_likeliest:  # of equals, the first is the likeliest: then any other's has less, if by one bit
                    most, which = (each[row] for each in block.max(dim=-1))
                    more = torch.nextafter(most, torch.full_like(most, torch.inf))
                    found = torch.where(likeliest.bool() & (which != token), more, found)
                parts.append(found)
                del block
            del logits  # not to be held while the next are made
        return torch.cat(parts).view(n_states, -1)

    def _logits(self, flat: torch.Tensor, head_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Make logits by the model's own head path, with the first row of each piece. Shapes: (R, D) → (head_rows, V).

        Rows are repeated where few are left, see `LEAST_ROWS`.
        """
        for start in range(0, len(flat), head_rows):
            some = flat[start : start + head_rows]
            enough = some.repeat(-(-LEAST_ROWS // len(some)), 1) if len(some) < LEAST_ROWS else some
            yield start, own_logits(self._model.module, self._model.anatomy.layers, enough)[: len(some)]
