"""A model is tested before it is believed, in a stage of its own; only a family that takes no tree mask gets rows."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowmem_layers.cli.display.progress import Progress, advance
from lowmem_layers.engine import Engine, lockstep, ready_engine
from lowmem_layers.engine.engine import examine_engine
from lowmem_layers.engine.lockstep import Pass, run_in_step
from lowmem_layers.engine.reference import reference_pass
from lowmem_layers.errors import EngineError, RemovalError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.homes.store import ResidentStore
from lowmem_layers.record.spec import StudySpec
from lowmem_layers.study.events import ModelExamined, StageStarted
from lowmem_layers.study.prepare import prepare_study
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem
from tests.engine.conftest import random_items
from tests.families import tiny_model
from tests.model.conftest import save_model

ITEM = EncodedItem("t", "0", (EncodedChoice((5, 6, 7, 8), 1), EncodedChoice((5, 6, 7, 9), 1)), 0, "0")


def refusing(error: BaseException) -> DecoderModel:
    """Build a model whose own code raises where it is given a mask of four dimensions."""
    module = tiny_model("llama")
    own = module.model.forward

    def forward(*args, **kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            raise error
        return own(*args, **kwargs)

    module.model.forward = forward
    return DecoderModel(module)


def test_a_family_that_cannot_unpack_a_tree_mask_gets_plain_rows_and_says_why():
    engine = ready_engine(refusing(ValueError("too many values to unpack (expected 2)")))
    assert engine.layout == "rows"
    assert engine.verdict is not None
    assert engine.verdict.reason == "ValueError: too many values to unpack (expected 2)"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("sizes"), KeyError("x")])
def test_what_nobody_expects_is_not_taken_for_a_family_without_tries(error):
    with pytest.raises(type(error)):
        Engine(refusing(error)).examine()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), OSError("the disk is gone"), MemoryError()])
def test_a_lack_of_memory_or_disk_is_no_fault_of_the_model(error):
    module = tiny_model("llama")

    def forward(*_args, **_kwargs):
        raise error

    module.model.layers[1].mlp.forward = forward
    with pytest.raises(type(error)):
        Engine(DecoderModel(module)).examine()


def test_what_a_familys_own_code_raises_is_a_refusal_with_the_reason():
    module = tiny_model("llama")

    def forward(*_args, **_kwargs):
        raise IndexError("no such thing")

    module.model.layers[1].mlp.forward = forward
    with pytest.raises(RemovalError, match="its own code raised IndexError: no such thing"):
        Engine(DecoderModel(module)).examine()


def test_an_error_of_the_sweep_itself_is_not_taken_for_a_family_without_tries():
    engine = Engine(DecoderModel(tiny_model("llama")))
    engine.model.examine()

    def score(batches, inputs, coalitions):
        if not all(row.is_chain for batch in batches for row in batch.rows):
            raise ValueError("a fault of ours")
        return engine._score_batches(batches, inputs, coalitions)

    with torch.inference_mode(), pytest.raises(ValueError, match="a fault of ours"):
        examine_engine(engine.model, score)


def test_layers_that_no_tree_mask_is_made_for_get_plain_rows():
    module = tiny_model("llama")
    engine = Engine(DecoderModel(module))
    module.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    verdict = engine.examine()
    assert not verdict.takes_tries
    assert verdict.reason == "layers of the kind linear_attention take no mask of a tree"


@pytest.mark.parametrize("ask", [
    lambda engine: engine.layout,
    lambda engine: engine.describe(),
    lambda engine: engine.plan_tiles([ITEM], [()]),
    lambda engine: engine.work([ITEM], [()]),
    lambda engine: engine.score([ITEM], [()]),
])  # fmt: skip
def test_an_engine_that_was_not_examined_says_so(ask):
    with pytest.raises(EngineError, match="not examined") as caught:
        ask(Engine(DecoderModel(tiny_model("llama"))))
    assert "examine()" in caught.value.hint


def test_with_a_layout_given_the_layers_are_enough():
    engine = Engine(DecoderModel(tiny_model("llama")), layout="rows")
    assert engine.describe()["layout"] == "rows"
    with pytest.raises(EngineError, match="not examined"):
        engine.score([ITEM], [()])
    engine.model.examine()
    assert engine.score([ITEM], [()])[0].shape == (1, 2)
    assert engine.verdict is None


def test_describing_and_asking_again_run_no_forward_pass():
    engine = ready_engine(DecoderModel(tiny_model("llama")))
    calls = []
    engine.model.module.register_forward_pre_hook(lambda *_: calls.append(1))
    assert engine.examine() is engine.examine()
    assert engine.describe()["self_test"]["takes_tries"] is True
    assert engine.model.describe()["parallel_sublayers"] is False
    assert engine.sizes.chunk_tokens > 0
    assert not calls


def test_examining_is_a_stage_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "llama")
    ticks = iter([10.0, 12.5])
    heard = []
    spec = StudySpec(model=str(tmp_path / "model"), limit=2, max_removed=1, device="cpu", dtype="float32")
    prepared = prepare_study(spec.resolved(), heard.append, clock=lambda: next(ticks))
    (examined,) = [event for event in heard if isinstance(event, ModelExamined)]
    assert heard[heard.index(examined) - 1] == StageStarted("examining the model", "examination")
    assert examined.takes_tries
    assert examined.elapsed_s == 2.5
    found = prepared.engine.describe()["self_test"]
    assert (examined.reason, examined.sweep_gap_nats) == (found["reason"], found["sweep_gap"])


def test_displays_take_the_event_without_a_line_of_their_own():
    before = Progress(started=0.0)
    assert advance(before, ModelExamined(True, "", 0.0, 1.0), 1.0) == before
    assert advance(replace(before, stage="x"), ModelExamined(False, "", 0.0, 1.0), 2.0).stage == "x"


def test_a_model_whose_predictions_see_later_tokens_is_refused():
    module = tiny_model("llama")
    for layer in module.model.layers:
        layer.self_attn.is_causal = False  # as in a masked or a diffusion language model
    with pytest.raises(RemovalError, match="another last token changes the logits before it"):
        ready_engine(DecoderModel(module))


def test_states_too_large_for_16_bits_are_called_so():
    """As Gemma's on a card without bfloat16: everything is NaN, which says nothing about what sees what."""
    module = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        module.model.embed_tokens.weight.mul_(3e4)
        module.model.layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(RemovalError, match="its logits are not finite in float16") as caught:
        ready_engine(DecoderModel(module))
    assert "--dtype float32" in caught.value.hint


def test_a_model_whose_layers_share_keys_and_values_is_refused_before_it_is_loaded():
    module = tiny_model("llama")
    module.config.num_kv_shared_layers = 2
    with pytest.raises(RemovalError, match="its last 2 decoder layers read the keys and values of earlier layers"):
        DecoderModel(module)


class CountingStore(ResidentStore):
    """Counts how often the weights of all layers are brought in."""

    passes = 0

    def sweep(self, visits):
        self.passes += 1
        return super().sweep(visits)


def test_an_examination_brings_the_weights_in_four_times():
    store = CountingStore()
    engine = Engine(DecoderModel(tiny_model("llama"), store=store))
    before = threading.active_count()
    assert engine.examine().takes_tries
    assert store.passes == 4  # the layers, all whole forward passes in step, plain rows, branching ones
    engine.examine()
    assert store.passes == 4
    assert threading.active_count() == before


@pytest.mark.parametrize("family", ["mixtral", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gpt2", "bloom"))])
def test_passes_in_step_are_those_one_after_the_other(family):
    model = DecoderModel(tiny_model(family, dtype=torch.float64))
    model.examine()
    items, coalitions = random_items(2), [(), (1,), (0, 3)]
    passes = [reference_pass(model, choice, removed, None) for item in items for removed in coalitions
              for choice in item.choices]  # fmt: skip
    in_step = run_in_step(model, passes)
    alone = [each.compute for each in passes]
    with torch.inference_mode():
        for each, compute, found in zip(passes, alone, in_step, strict=True):
            with each.changed():
                assert compute() == found
    assert len(set(in_step)) > len(coalitions)


def test_passes_that_are_too_many_at_once_go_in_groups(monkeypatch):
    store = CountingStore()
    model = DecoderModel(tiny_model("llama"), store=store)
    model.examine()
    passes = [reference_pass(model, ITEM.choices[0], removed, None) for removed in [(), (0,), (1,), (2,), (0, 2)]]
    together = run_in_step(model, passes)
    assert store.passes == 2
    monkeypatch.setattr(lockstep, "_AT_ONCE", {"cpu": 2})
    assert run_in_step(model, passes) == together
    assert store.passes == 2 + 3


def test_a_pass_that_fails_ends_all_and_leaves_the_model_whole():
    model = DecoderModel(tiny_model("llama"))
    model.examine()
    before, threads = [*model.module.modules()], threading.active_count()
    good = reference_pass(model, ITEM.choices[0], (1, 2), None)

    def fail():
        model.module(input_ids=torch.tensor([[3, 4]]), use_cache=False)
        raise ValueError("at the end")

    with pytest.raises(ValueError, match="at the end"):
        run_in_step(model, [good, Pass(fail, nullcontext), good])
    with pytest.raises(RemovalError, match="more than its 3 decoder layers"):
        run_in_step(model, [Pass(lambda: [model.module(input_ids=torch.tensor([[3]])) for _ in range(2)], nullcontext)])
    assert [*model.module.modules()] == before
    assert threading.active_count() == threads
    assert not any("forward" in layer.__dict__ for layer in model.module.modules())
