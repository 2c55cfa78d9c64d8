"""What a sweep allocates on a GPU made of shapes is what the budget counts, at the widths of real models.

Fake tensors hold no numbers but know their sizes: all storages that are alive are added up after each operation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowmem_layers.engine.budget import Widths, sizes_for, tile_bytes
from lowmem_layers.engine.engine import Engine
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.checkpoint.skeleton import build_skeleton
from lowmem_layers.model.shape import shape_of_module, shipped_config
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem
from tests.fake_cuda import fake_gpu
from tests.families import tiny_model

CUDA = torch.device("cuda:0")
GEMMA_2_9B = {
    "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192, "sliding_window": 4096,
}  # fmt: skip


FALCON_7B = {"hidden_size": 4544, "num_attention_heads": 71, "vocab_size": 65024}
CONFIGS = {"gemma-2-9b": GEMMA_2_9B, "falcon-7b": FALCON_7B}


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all storages on the GPU that were made while it watches and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        older = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        self._alive = {key: each for key, each in self._alive.items() if not each[0].expired()}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.device.type == "cuda":
                storage = leaf.untyped_storage()
                if storage._cdata not in older and storage._cdata not in self._alive:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


def wide_model(family: str, config: Any, mode: Any) -> DecoderModel:
    """Build four layers of real widths out of fakes, driven as a tiny model of the same family is."""
    tiny = DecoderModel(tiny_model(family, num_hidden_layers=4))
    programs = tiny.examine()
    config.num_hidden_layers = 4
    module = build_skeleton(config, torch.bfloat16)
    model = DecoderModel(module, shape=shape_of_module(module, DecoderModel(module)._found))
    layers = [
        replace(program.anatomy, layer=layer.layer)
        for program, layer in zip(programs, model._found.layers, strict=True)
    ]
    known = tuple(replace(program, anatomy=layer) for program, layer in zip(programs, layers, strict=True))
    model._examined = known, replace(model._found, layers=tuple(layers))
    with mode:
        for each in module.modules():
            for name, weight in each._parameters.items():
                if weight is not None:
                    fake = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                    each._parameters[name] = nn.Parameter(fake, requires_grad=False)
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    each._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    module.tie_weights()
    return model


def item(n_context: int, n_choices: int, n_scored: int, name: str) -> EncodedItem:
    context = (int(name) + 3, *(3 + (7 * i) % 90 for i in range(n_context - 1)))  # no beginning is shared
    ends = [tuple(3 + (n + i) % 90 for i in range(n_scored)) for n in range(n_choices)]
    return EncodedItem("t", name, tuple(EncodedChoice(context + end, n_scored) for end in ends), 0, name)


@pytest.mark.parametrize(
    ("family", "name", "lengths", "least"),
    [
        pytest.param("llama", "llama-3-8b", (147, 2, 1), 0.9, marks=pytest.mark.slow),
        pytest.param("llama", "llama-3-70b", (26, 4, 3), 0.95, marks=pytest.mark.slow),
        pytest.param("mixtral", "mixtral-8x7b", (147, 2, 1), 0.85, marks=pytest.mark.slow),
        pytest.param("gemma2", "gemma-2-9b", (147, 2, 1), 0.9, marks=pytest.mark.slow),
        ("gemma2", "gemma-2-9b", (1500, 2, 1), 0.84),  # its attention is eager, and scores take the most
        # one key for all heads: torch keeps the scores, too, so that one state at a time is computed, in no full chunk
        pytest.param("falcon", "falcon-7b", (1500, 2, 1), 0.3, marks=pytest.mark.slow),
        ("llama", "llama-3-8b", (8, 1, 3000), 0.7),  # a text, of which every token is scored
    ],
)
def test_a_tile_allocates_what_the_budget_counts(family: str, name: str, lengths: Any, least: float) -> None:
    with fake_gpu() as mode:
        if name in CONFIGS:
            config = tiny_model(family, num_hidden_layers=4).config
            for key, value in CONFIGS[name].items():
                setattr(config, key, value)
        else:
            config = shipped_config(name)
        model = wide_model(family, config, mode)
        sizes = sizes_for(torch.device("cuda"), model.shape.vocabulary)
        items = [item(*lengths, name=str(i)) for i in range(max(1, 4096 // (lengths[0] + lengths[2])))]
        coalitions = windows(8, 4)
        with mode, torch.no_grad():
            engine = Engine(model, layout="trie", budget_bytes=1 << 36, sizes=sizes)
            watched = Allocated()
            with watched:
                sweep = engine._sweep(engine._tree(coalitions), engine._inputs, lambda _: None)
                live = [sweep.start(batch) for batch in engine._batches(items, engine._tree(coalitions))]
                sweep.visit_layers(live)
                while live:
                    sweep._finish(live.pop(0))
            counted = tile_bytes(engine.costs(items, coalitions))
        positions = sum(len(row) for row in engine._rows(items)) * engine._tree(coalitions).n_slots
        filled = replace(sizes, chunk_tokens=min(sizes.chunk_tokens, positions))
        counted += Widths.of(model.shape).chunk_bytes(filled)
    assert least * counted <= watched.peak <= counted, watched.peak / counted
