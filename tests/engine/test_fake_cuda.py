"""The sweep on a GPU made of shapes: nothing is left on the CPU, and no layer makes the host wait.

What these tests cannot see (values, streams, speed) needs a GPU.
"""

from __future__ import annotations

import pytest
import torch

from lowmem_layers.engine.engine import Engine, Layout
from lowmem_layers.model.anatomy.decoder import DecoderModel
from tests.engine.conftest import random_items
from tests.fake_cuda import Transfers, fake_gpu, to_fake_cuda
from tests.families import FAMILIES, HYBRIDS, tiny_model

# one after the other, neighbours, and some whose states do not lie side by side
COALITIONS = [(), (0,), (1,), (0, 1), (0, 2), (3,), (1, 3)]
QUICK = ["llama", "gemma2", "mixtral"]
ROWS_ONLY = {"falcon-alibi", "bloom", "mpt", *HYBRIDS}
# Falcon's own code picks keys and values by lists, `fused_qkv[..., [-2], :]`, which are brought to the device anew.
WAITS = {"falcon", "falcon-new", "falcon-alibi"}
# These models' own code reads how many tokens each expert has: without values it cannot run. (It runs on the simulated
# card, tests/simulated_card.py.)
READS_VALUES = {"dbrx", "jetmoe"}
CASES = [
    pytest.param(family, layout, marks=[] if family in QUICK and layout == "trie" else pytest.mark.slow)
    for family in [*FAMILIES, *HYBRIDS]
    if family not in READS_VALUES
    for layout in (["rows"] if family in ROWS_ONLY else ["trie", "rows"])
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_a_sweep_stays_on_the_gpu_and_waits_once_a_batch(family: str, layout: Layout) -> None:
    model = DecoderModel(tiny_model(family))
    model.examine()
    transfers = Transfers()
    with fake_gpu() as mode:
        to_fake_cuda(model.module, mode)
        with mode, torch.no_grad():
            engine = Engine(model, layout=layout, budget_bytes=1 << 30)
            coalitions = [each for each in COALITIONS if max(each, default=0) < len(model.players)]
            tree = engine._tree(coalitions)
            sweep = engine._sweep(tree, engine._inputs, lambda _: None)
            # 1) what is brought to the device is brought before the first layer, the indices at their first use
            for _ in range(2):
                live = [sweep.start(batch) for batch in engine._batches(random_items(3), tree)]
                assert {each.states.device.type for each in live} == {"cuda"}
                del transfers.seen[:]
                with transfers:
                    sweep.visit_layers(live)
            assert family in WAITS or transfers.seen == []
            # 2) the head: indices to the device, log-likelihoods from it
            for each in live:
                del transfers.seen[:]
                with transfers:
                    owners, values = sweep._finish(each)
                assert transfers.seen == ["_to_copy", "_to_copy"]
                assert values.shape == (len(coalitions), len(owners))
                assert values.device.type == "cpu"


def test_a_mask_left_on_the_cpu_and_a_value_that_is_waited_for_are_seen() -> None:
    transfers = Transfers()
    with fake_gpu() as mode, mode:
        states, mask = torch.zeros(2, 3, device="cuda:0"), torch.zeros(2, 3)
        with pytest.raises(RuntimeError, match="at least two devices"):
            states + mask
        with transfers:
            states + mask.to("cuda:0")
            states[[0, 1]].add_(1)
            states.sum().cpu()
    assert transfers.seen == ["_to_copy"] * 3
