"""From states behind the last layer to log-likelihoods: each distinct scored node once, in float32, the vocabulary in
slices.

Where the model's logits are its output embedding times the final hidden state and nothing else (checked on the loaded
model), the product is made slice by slice, so that a slice of logits stays in the cache. Where scales or softcaps
come after it, the model's own head path makes whole rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lowmem_layers.engine.trie import Row
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.model.forward import final_hidden, own_logits

_LOOK = 256  # logits at which a row's normaliser is read


@dataclass(frozen=True)
class Pairs:
    """What is read off the logits of a batch: K pairs of a scored node and a token, and the choice each belongs to.

    Shapes: `nodes`, `tokens`, `choices` (K,); `nodes` index the batch's scored nodes, `choices` the list `owners` of
    (item, choice).
    """

    nodes: torch.Tensor
    tokens: torch.Tensor
    choices: torch.Tensor
    owners: tuple[tuple[int, int], ...]


def pairs_of(rows: Sequence[Row], width: int, scored: Sequence[int], device: torch.device) -> Pairs:
    """List the pairs of a batch whose rows are `width` nodes apart."""
    place = {node: position for position, node in enumerate(scored)}
    nodes, tokens, choices = [], [], []
    owners: list[tuple[int, int]] = []
    for r, row in enumerate(rows):
        for target in row.targets:
            nodes += [place[r * width + node] for node in target.nodes]
            tokens += target.tokens
            choices += [len(owners)] * len(target.nodes)
            owners.append((target.item, target.choice))
    columns = torch.from_numpy(np.array([nodes, tokens, choices], dtype=np.int64)).to(device)
    return Pairs(columns[0], columns[1], columns[2], tuple(owners))


class Head:
    """A model's way from final states to log-probabilities.

    Units: `slice_width` is in vocabulary entries.
    """

    def __init__(self, model: DecoderModel, slice_width: int) -> None:
        self._model = model
        self._slice_width = slice_width

    @cached_property
    def is_plain(self) -> bool:
        """Tell whether logits are nothing but the output embedding times the final hidden state."""
        states = _probe_states(self._model)
        own = own_logits(self._model.module, self._model.anatomy.layers, states)
        hidden = final_hidden(self._model.module, self._model.anatomy.layers, states)
        return torch.equal(self._model.module.get_output_embeddings()(hidden[:, None])[:, 0], own)

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return self._model.module.get_output_embeddings().weight.shape[0]

    def loglikelihoods(self, states: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        """Sum the log-probabilities of every choice's tokens.

        Shapes: `states` (C, S, D) → (C, number of choices), float64 nats.
        """
        n_states, n_scored, width = states.shape
        flat = states.reshape(-1, width)
        sliced = self.is_plain and self.vocabulary > self._slice_width
        read = self._sliced if sliced else self._whole
        chosen, normaliser = read(flat, n_states, n_scored, pairs)
        logprobs = chosen - normaliser.view(n_states, n_scored)[:, pairs.nodes]
        sums = torch.zeros(n_states, len(pairs.owners), dtype=torch.float64, device=states.device)
        return sums.index_add_(1, pairs.choices, logprobs.double())

    def _whole(
        self, flat: torch.Tensor, n_states: int, n_scored: int, pairs: Pairs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = own_logits(self._model.module, self._model.anatomy.layers, flat)
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        chosen = logits.view(n_states, n_scored, -1)[:, pairs.nodes, pairs.tokens].to(wide)
        return chosen, _log_normaliser(logits)

    def _sliced(
        self, flat: torch.Tensor, n_states: int, n_scored: int, pairs: Pairs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = final_hidden(self._model.module, self._model.anatomy.layers, flat)
        head = self._model.module.get_output_embeddings()
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        chosen = torch.zeros(n_states, len(pairs.nodes), dtype=wide, device=flat.device)
        parts = []
        for low in range(0, self.vocabulary, self._slice_width):
            high = min(low + self._slice_width, self.vocabulary)
            bias = None if head.bias is None else head.bias[low:high]
            logits = torch.nn.functional.linear(hidden, head.weight[low:high], bias)
            inside = ((pairs.tokens >= low) & (pairs.tokens < high)).nonzero()[:, 0]
            nodes, tokens = pairs.nodes[inside], pairs.tokens[inside] - low
            chosen[:, inside] = logits.view(n_states, n_scored, -1)[:, nodes, tokens].to(wide)
            parts.append(_log_normaliser(logits))
        return chosen, torch.stack(parts).logsumexp(0)


def _log_normaliser(logits: torch.Tensor) -> torch.Tensor:
    """Compute log Σ exp of each row in float32 (float64 stays). Shapes: (R, V) → (R,).

    Read off the log-softmax as logit minus log-probability; torch's log-softmax kernel is many times faster on a CPU
    than its logsumexp. Read at the largest of the first logits: any would do but for rounding, and a vocabulary may
    be padded with −inf.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logprobs = logits.log_softmax(-1, dtype=wide)
    first = logits[:, :_LOOK]
    return first.amax(-1).to(wide) - logprobs[:, :_LOOK].amax(-1)


def _probe_states(model: DecoderModel) -> torch.Tensor:
    """Draw states large enough that a softcap would show. Shapes: (4, D)."""
    width = getattr(model.config, "hidden_size", model.module.get_input_embeddings().weight.shape[-1])
    states = 8 * torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    return states.to(device=model.device, dtype=model.dtype)
