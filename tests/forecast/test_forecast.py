"""What is planned is what a run then takes: the home, the tiles, the bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lowmem_layers.errors import BudgetError, TaskError, UsageError
from lowmem_layers.forecast import forecast
from lowmem_layers.forecast.forecast import forecast_study
from lowmem_layers.forecast.machine import Machine, measure_machine
from lowmem_layers.record.spec import PAPER_TASKS, StudySpec
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.prepare import prepare_study
from tests.model.conftest import save_model

LONG = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "llama")
    return tmp_path / "model"


@cache
def machine_measured_once(*where: Any) -> Machine:
    return measure_machine(*where)


@pytest.mark.parametrize("quant", ["none", "4bit", "8bit"])
@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_what_is_planned_is_what_a_run_takes(
    quant: str, offload: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "measure_machine", machine_measured_once)
    if offload == "disk":  # how fast a layer is does not depend on where it lives: timed once for each packing
        monkeypatch.setattr(forecast, "measure_speed", lambda *_: None)
    for module in ("lowmem_layers.model.memory", "lowmem_layers.model.load"):  # both see a process of one size
        monkeypatch.setattr(f"{module}.resident_bytes", lambda: 500 << 20)
    monkeypatch.setattr("lowmem_layers.model.load._BITSANDBYTES_BYTES", 0)  # the plan imports it for the run here
    spec = StudySpec(model=str(folder), quant=quant, offload=offload, limit=5, max_removed=2, device="cpu").resolved()
    planned = forecast_study(spec)
    prepared = prepare_study(spec, lambda event: None)
    removed = plan_design(spec, prepared.players).removed
    tiles = prepared.engine.plan_tiles(prepared.encoded, removed)
    found: Any = prepared.model
    assert planned.memory.home == found["home"] == offload
    assert planned.memory.slots == found["slot_bytes"]
    assert planned.memory.n_tiles == len(tiles)
    assert planned.work.compute_s > 0
    work = prepared.engine.work(prepared.encoded, removed)
    assert planned.work.flops == pytest.approx(2 * work, rel=1e-9)
    around = planned.memory.host - planned.memory.states - planned.memory.chunk
    assert around == found["expected_cpu_bytes"]


def test_a_benchmark_that_is_not_at_hand_is_planned_by_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(spec: StudySpec) -> list[Any]:
        raise TaskError("cannot get boolq", "give --data-dir")

    monkeypatch.setattr(forecast, "read_tasks", unreachable)
    assert forecast.tasks_at_hand(StudySpec(preset="paper").resolved()) is None
    known = forecast.remembered_tokens(StudySpec(preset="paper").resolved())
    assert len(known.trunk) == len(known.scored) == 5500
    assert "not at hand" in known.whose
    all_items = forecast.remembered_tokens(StudySpec(tasks=PAPER_TASKS).resolved())
    assert sum(all_items.trunk) == pytest.approx(777_781, rel=0.05)  # counted on the whole benchmarks
    with pytest.raises(TaskError):
        forecast.tasks_at_hand(StudySpec(tasks=("boolq", "lm_eval:x")).resolved())
    with pytest.raises(TaskError):
        forecast.tasks_at_hand(StudySpec(tasks=("boolq",), data_dir="nowhere").resolved())
    with pytest.raises(TaskError):  # chats have more tokens than what was counted
        forecast.tasks_at_hand(StudySpec(tasks=("boolq",), chat_template="tokenizer").resolved())


def test_too_little_for_an_item_and_a_chunk_is_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hardly anything is left by the share for states, so that what an item needs decides."""
    monkeypatch.setattr("lowmem_layers.model.placement._RESERVED_SHARE", 1 << 20)
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "llama", max_position_embeddings=4096)
    item = {"q": "a" * 900, "options": ["b", "c"], "answer": 0}
    (tmp_path / "items.jsonl").write_text(json.dumps(item))
    (tmp_path / "long.toml").write_text(LONG)
    task = str(tmp_path / "long.toml")
    for module in ("lowmem_layers.model.memory", "lowmem_layers.model.load"):
        monkeypatch.setattr(f"{module}.resident_bytes", lambda: 500 << 20)
    spec = StudySpec(
        model=str(tmp_path / "model"), tasks=(task,), max_removed=1, device="cpu", dtype="float32"
    ).resolved()

    def refusals(limit: int) -> set[str]:
        found = set()
        for refuse in (lambda s: prepare_study(s, lambda event: None), forecast_study):
            with pytest.raises(BudgetError, match=r"for the states of the longest item, and to compute with") as caught:
                refuse(replace(spec, max_cpu_memory=limit))
            found.add(f"{caught.value.message}; {caught.value.hint}")
        return found

    with monkeypatch.context() as patch:
        patch.setattr("lowmem_layers.model.load.fill_home", lambda *_: pytest.fail("weights were read"))
        (said,) = refusals(600 << 20)
        enough = int(re.findall(r"--max-cpu-memory (\d+)MiB", said)[0]) << 20
        assert refusals(enough - (64 << 20))
    prepared = prepare_study(replace(spec, max_cpu_memory=enough), lambda event: None)
    assert prepared.engine.plan_tiles(prepared.encoded, plan_design(spec, prepared.players).removed)


def test_what_is_no_game_of_this_model_is_refused_before_a_weight_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem_layers.model.load.fill_home", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match="--max-removed 9 is more than"):
        prepare_study(StudySpec(model=str(folder), limit=2, max_removed=9).resolved(), lambda event: None)


def test_tokens_that_the_model_does_not_know_are_refused_by_plan_and_run(folder: Path) -> None:
    """The tokenizer has 256 tokens, the model 100; the letters of the items are above that."""
    save_model(folder, "llama", vocab_size=100)
    spec = StudySpec(model=str(folder), limit=1, max_removed=1, device="cpu").resolved()
    for refuse in (lambda s: prepare_study(s, lambda event: None), forecast_study):
        with pytest.raises(TaskError, match=r"it has the token \d+, the model knows 100 tokens"):
            refuse(spec)
