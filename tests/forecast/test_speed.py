"""The micro-benchmark counts what it times: a rate above what a machine can do makes every forecast too short."""

from __future__ import annotations

import pytest
import torch

from lowmem_layers.engine import ready_engine
from lowmem_layers.forecast import speed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from tests import families

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "phi", "mixtral"])
def test_a_layer_is_computed_at_every_position_it_is_counted_for(family):
    model = DecoderModel(families.tiny_model(family, num_hidden_layers=1, vocab_size=512))
    seen = []
    for module in model.module.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.module.get_output_embeddings():
            module.register_forward_hook(lambda m, args, _: seen.append(args[0].numel() * m.out_features))
    engine = ready_engine(model, layout="rows")
    items = [speed.scored_everywhere(16, number) for number in range(4)]
    seen.clear()
    work, _ = engine.time_layers(items, [(), (0,), (1,), (0, 1)], lambda: 0.0)
    linear = sum(seen)
    attention, feed_forward = model.shape.macs
    assert work == 4 * 16 * (attention + 2 * feed_forward)  # one state through attention, two through the other
    if family != "mixtral":  # whose experts are no linear modules
        assert linear == work


def test_time_is_that_of_the_layers_alone():
    ticks = iter([2.0, 5.0])
    model = DecoderModel(families.tiny_model("llama", num_hidden_layers=1, vocab_size=512))
    engine = ready_engine(model, layout="rows")
    assert engine.time_layers([speed.scored_everywhere(8, 0)], [()], lambda: next(ticks))[1] == 3.0


def test_speeds_are_measured_in_moments():
    config = families.tiny_model("llama").config
    found = speed.measure_speed(config, "nf4", CPU, torch.float32, 16, seconds=0.02)
    assert found is not None
    assert min(found.layer_macs_s, found.head_macs_s, found.unpacked_s) > 1e5


@pytest.mark.parametrize("family", ["jamba", "mamba"])
def test_a_layer_of_a_hybrid_is_timed_too(family):
    config = families.tiny_model(family).config
    found = speed.measure_speed(config, "none", CPU, torch.float32, 8, seconds=0.01)
    assert found is not None
    assert found.layer_macs_s > 0
