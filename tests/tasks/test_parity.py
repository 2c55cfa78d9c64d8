"""Parity with lm-evaluation-harness: its tokens and log-likelihoods for look-alike items, stored, are ours too.

`lookalike/reference.json` is what `benchmarks.parity --data-dir tests/tasks/lookalike --reference FILE` writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lowmem_layers.model.checkpoint.embedded import INSTALL, find_embedded_model
from lowmem_layers.tasks import BENCHMARKS, encode_task, load_tasks

FOLDER = Path(__file__).with_name("lookalike")
REFERENCE = json.loads((FOLDER / "reference.json").read_text())
REAL = os.environ.get("LOWMEM_LAYERS_DATA")
NATS = 1e-3


@pytest.fixture(scope="module")
def model():
    if find_embedded_model() is None:
        pytest.skip(f"the embedded model is not installed: {INSTALL}")
    from lowmem_layers.model import ModelSpec, load_model

    return load_model(ModelSpec(quant="none", dtype="float32", device="cpu"))


def encoded(model):
    tasks = load_tasks(list(BENCHMARKS), data_dir=FOLDER)
    return {task.name: encode_task(task, model.tokenizer, max_length=8192) for task in tasks}


def tokens_hash(tokens):
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:16]


def test_tokens_are_those_of_the_harness(model):
    for name, items in encoded(model).items():
        ours = [(tokens_hash(choice.tokens), choice.n_scored) for item in items for choice in item.choices]
        assert ours == [(one["tokens"], one["n_scored"]) for one in REFERENCE[name]], name


def test_another_token_would_be_seen(model):
    choice = encoded(model)["boolq"][0].choices[0]
    assert tokens_hash(choice.tokens[1:]) != REFERENCE["boolq"][0]["tokens"]


def test_loglikelihoods_are_those_of_the_harness(model):
    from lowmem_layers.engine import ready_engine

    engine = ready_engine(model)
    items = [item for several in encoded(model).values() for item in several]
    found = {}
    for tile in engine.plan_tiles(items, [()]):
        found |= dict(zip(tile, engine.score([items[index] for index in tile], [()]), strict=True))
    ours = np.concatenate([found[index][0] for index in range(len(items))])
    theirs = [one["loglikelihood"] for name in BENCHMARKS for one in REFERENCE[name]]
    np.testing.assert_allclose(ours, theirs, atol=NATS, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="LOWMEM_LAYERS_DATA names no folder with the benchmarks' items")
def test_tokens_of_real_items_are_those_of_the_harness():
    command = [sys.executable, "-m", "benchmarks.parity", "--data-dir", str(REAL), "--tokens-only"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    rows = json.loads(done.stdout.splitlines()[-1])["tasks"]
    assert {row["task"]: row["differing_tokens"] for row in rows} == dict.fromkeys(BENCHMARKS, 0)


@pytest.fixture
def comparison(monkeypatch):
    """Give the benchmark's comparison of one item of two choices, the harness' numbers being right."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import parity

    (task,) = load_tasks(["boolq"], data_dir=FOLDER, limit=1)
    row = parity.Row("boolq", 1, 2, 0)
    reference = np.array([[-1.0, -2.0]])
    results = [{"acc": float(task.items[0].gold == 0)}]
    return lambda ours: parity.scored(row, task, results, reference, np.array([ours])), parity.is_equal


def test_the_comparison_sees_what_is_equal(comparison):
    compare, is_equal = comparison
    row = compare([-1.0005, -2.0])
    assert is_equal(row)
    assert (row.differing_predictions, row.not_the_same) == (0, {})


@pytest.mark.parametrize("ours", [[-1.0, -2.002], [-2.0, -1.0], [-1.0, float("nan")], [float("-inf"), -2.0]])
def test_the_comparison_would_see_a_wrong_value(comparison, ours):
    compare, is_equal = comparison
    assert not is_equal(compare(ours))
