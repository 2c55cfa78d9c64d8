"""Parity with lm-evaluation-harness: its tokens for look-alike items, stored, are ours too.

Its log-likelihoods are compared in tests/engine/test_real.py, where the model is loaded.

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


@pytest.fixture(scope="module")
def tokenizer():
    if find_embedded_model() is None:
        pytest.skip(f"the embedded model is not installed: {INSTALL}")
    from lowmem_layers.model import ModelSpec
    from lowmem_layers.model.load import inspect_model

    return inspect_model(ModelSpec(quant="none", dtype="float32", device="cpu")).tokenizer


def encoded(tokenizer):
    tasks = load_tasks(list(BENCHMARKS), data_dir=FOLDER)
    return {task.name: encode_task(task, tokenizer, max_length=8192) for task in tasks}


def tokens_hash(tokens):
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:16]


def test_tokens_are_those_of_the_harness(tokenizer):
    for name, items in encoded(tokenizer).items():
        ours = [(tokens_hash(choice.tokens), choice.n_scored) for item in items for choice in item.choices]
        assert ours == [(one["tokens"], one["n_scored"]) for one in REFERENCE[name]], name


def test_another_token_would_be_seen(tokenizer):
    choice = encoded(tokenizer)["boolq"][0].choices[0]
    assert tokens_hash(choice.tokens[1:]) != REFERENCE["boolq"][0]["tokens"]


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
