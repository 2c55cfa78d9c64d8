"""What is foreseen of the items is what the engine then lays out, and what one refuses the others refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers import run_study
from lowmem_layers.engine.budget import Widths, largest_item_bytes, needed_room, sizes_for, tile_bytes
from lowmem_layers.engine.trie import lay_out, plain_rows, trie_rows
from lowmem_layers.errors import BudgetError
from lowmem_layers.forecast import forecast
from lowmem_layers.forecast.machine import Machine
from lowmem_layers.game.players.player import players_of
from lowmem_layers.game.players.tree import prefix_tree
from lowmem_layers.model.load import inspect_model
from lowmem_layers.model.placement import ModelBytes, needed
from lowmem_layers.model.shape import ModelShape
from lowmem_layers.record.spec import Specification, StudySpec
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.prepare import model_spec, prepare_study
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem
from tests.families import tiny_model
from tests.model.conftest import tiny_tokenizer

PARALLEL = ["phi", "stablelm-parallel", "cohere", "cohere2", "gpt_neox", "gptj", "falcon", "falcon-new"]
IN_TURN = ["llama", "gpt_neox-sequential", "mixtral", "gpt_oss"]
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'

SHAPE = ModelShape(
    players_of(["ffn"]), (10, 20), hidden=4, widest=8, vocabulary=9, itemsize=4, parallel=False, n_parameters=0,
    n_streamed=0, n_bytes=ModelBytes(0, 0, 0, 0, 0, 0), kept=56, kept_attention=8, pair_bytes=0,
)  # fmt: skip

tokens = st.lists(st.integers(0, 2), min_size=2, max_size=9)
items = st.lists(st.lists(tokens, min_size=1, max_size=4), max_size=8)


@given(items, st.integers(1, 9), st.sampled_from([1, 4, 400]))
def test_the_largest_item_is_that_of_all_layouts(parts, deepest, hidden):
    encoded = [
        EncodedItem("t", str(i), tuple(EncodedChoice(tuple(each), 1) for each in several), 0, str(i))
        for i, several in enumerate(parts)
    ]
    shape = replace(SHAPE, hidden=hidden)
    tree = prefix_tree([(), (0,)], 2)
    sizes = [tile_bytes([Widths.of(shape).item(lay_out([item], float, deepest), tree)]) for item in encoded]
    assert largest_item_bytes(encoded, shape, tree, deepest) == max(sizes, default=0)


@given(items, st.integers(1, 9))
def test_an_item_deeper_than_what_was_verified_is_laid_out_plainly(parts, deepest):
    encoded = [
        EncodedItem("t", "", tuple(EncodedChoice(tuple(each), 1) for each in several), 0, "") for several in parts
    ]
    for item in encoded:
        deep = max(len(choice.tokens) for choice in item.choices) > deepest + 1
        assert lay_out([item], float, deepest) == (plain_rows([item]) if deep else trie_rows([item], float))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that saves a tiny model of a family, and resolves a study of it with three items."""
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lowmem_layers.model.load.resident_bytes", lambda: 500 << 20)  # of plan and run alike
    monkeypatch.setattr(forecast, "measure_machine", lambda *_: Machine("m", 1e9, 1e9, 1e9, 1e9, 8 << 30, True, False))
    monkeypatch.setattr(forecast, "measure_speed", lambda *_: None)
    (tmp_path / "own.toml").write_text(TASK)

    def prepare(family: str, length: int = 100, max_length: int = 256) -> Specification:
        questions = [{"q": "a" * n, "options": ["bcd", "bed", "x"], "answer": 0} for n in (60, length, 20)]
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, questions)))
        longest = "n_positions" if family == "gptj" else "max_position_embeddings"
        tiny_model(family, vocab_size=256, **{longest: max_length}).save_pretrained(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        task, model = str(tmp_path / "own.toml"), str(tmp_path / "model")
        return StudySpec(model=model, tasks=(task,), max_removed=2, device="cpu", dtype="float32").resolved()

    return prepare


@pytest.mark.parametrize("family", PARALLEL + IN_TURN)
def test_states_take_the_same_bytes_in_the_plan_in_the_check_and_in_the_engine(family: str, study: Any) -> None:
    spec = study(family)
    planned = forecast.forecast_study(spec)
    prepared: Any = prepare_study(spec, lambda event: None)
    removed = plan_design(spec, prepared.players).removed
    costs = prepared.engine.costs(prepared.encoded, removed)
    tiles = prepared.engine.plan_tiles(prepared.encoded, removed)
    assert planned.memory.states == max(tile_bytes(costs[index] for index in tile) for tile in tiles)
    assert planned.work.flops == 2 * prepared.engine.work(prepared.encoded, removed)
    # twice where attention's output waits beside the states, of float32 numbers; two masks, and one state's three more;
    # eager attention keeps four numbers for each pair of tokens in each of its four heads, and so does Falcon-7B's
    (longest,) = (len(row) for row in trie_rows([prepared.encoded[1]], float))
    states = len(removed) * longest * planned.shape.hidden * (2 if family in PARALLEL else 1)
    scores = 4 * 4 * longest**2 if family in ("gpt_oss", "gemma2", "bloom", "mpt", "falcon") else 0
    assert max(tile_bytes([cost]) for cost in costs) == 4 * (states + 5 * longest**2 + scores)


@pytest.mark.parametrize(
    "family",
    [
        *PARALLEL[:3],
        "llama",
        *(pytest.param(each, marks=pytest.mark.slow) for each in (*PARALLEL[3:], "gpt_neox-sequential")),
    ],
)
def test_what_one_of_plan_check_and_engine_refuses_the_others_refuse(
    family: str, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last byte: the memory in which the longest item just fits beside a chunk, and one byte less."""
    monkeypatch.setattr("lowmem_layers.model.placement._RESERVED_SHARE", 1 << 30)  # so that the item's need decides
    spec = study(family)
    found = inspect_model(model_spec(spec))
    unlimited: Any = prepare_study(spec, lambda event: None)
    removed = plan_design(spec, found.shape.players).removed
    tree = prefix_tree(removed, len(found.shape.players))
    largest = largest_item_bytes(unlimited.encoded, found.shape, tree, deepest=256)
    room = needed_room(found.shape, found.device, largest)
    used = needed(found.shape.n_bytes, "cpu", on_gpu=False).cpu_bytes

    def check_and_engine(limit: int) -> None:
        prepared: Any = prepare_study(replace(spec, max_cpu_memory=limit), lambda event: None)
        try:
            prepared.engine.plan_tiles(prepared.encoded, removed)
        except BudgetError as error:
            pytest.fail(f"the check let pass what the engine refuses: {error.message}")

    def engine_alone(limit: int) -> None:
        engine = type(unlimited.engine)(unlimited.engine.model, budget_bytes=limit - used, layout="trie")
        engine.plan_tiles(unlimited.encoded, removed)

    def plan(limit: int) -> None:
        forecast.forecast_study(replace(spec, offload="cpu", max_cpu_memory=limit))

    spec = replace(spec, offload="cpu")
    for attempt in (check_and_engine, engine_alone, plan):
        attempt(used + room)
        with pytest.raises(BudgetError):
            attempt(used + room - 1)


def test_a_run_goes_on_with_the_sizes_that_it_began_with_whatever_is_free_now(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk sizes decide the numbers: they come from the record, or the run says what no longer fits."""
    monkeypatch.setattr("lowmem_layers.model.placement._RESERVED_SHARE", 1 << 30)  # so that the item's need decides
    spec = replace(study("llama"), limit=2)
    found = inspect_model(model_spec(spec))
    used = needed(found.shape.n_bytes, "cpu", on_gpu=False).cpu_bytes
    chunk = Widths.of(found.shape).chunk_bytes(sizes_for(found.device, found.shape.vocabulary))
    little, plenty = (replace(spec, max_cpu_memory=used + given) for given in (2 * chunk, 8 * chunk))
    whole = {name: run_study(each, tmp_path / name) for name, each in (("little", little), ("plenty", plenty))}
    sizes = {name: dict(run.manifest.engine.sizes) for name, run in whole.items()}
    assert sizes["little"]["chunk_tokens"] < sizes["plenty"]["chunk_tokens"]
    for name, other in (("little", plenty), ("plenty", little)):
        (tmp_path / name / "scores" / "tile-00000.parquet").unlink()
        again = run_study(other, tmp_path / name)
        assert again.manifest.engine.sizes["chunk_tokens"] == sizes[name]["chunk_tokens"]
        assert again.scores().equals(whole[name].scores())
    (tmp_path / "plenty" / "scores" / "tile-00000.parquet").unlink()
    with pytest.raises(BudgetError, match=r"need|are given|takes"):
        run_study(replace(spec, max_cpu_memory=used + chunk), tmp_path / "plenty")


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mistral"])
def test_an_item_too_long_for_tries_that_the_check_lets_pass_is_not_refused_by_the_engine(
    family: str, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its choices are laid out one by one, which takes more than a trie."""
    monkeypatch.setattr("lowmem_layers.model.placement._RESERVED_SHARE", 1 << 30)
    spec = replace(study(family, length=1500, max_length=2048), offload="cpu")
    found = inspect_model(model_spec(spec))
    used = needed(found.shape.n_bytes, "cpu", on_gpu=False).cpu_bytes
    refused = 0
    for more in range(10 << 20, 200 << 20, 5 << 20):
        try:
            prepared: Any = prepare_study(replace(spec, max_cpu_memory=used + more), lambda event: None)
        except BudgetError:
            refused += 1
            continue
        removed = plan_design(spec, prepared.players).removed
        assert len(prepared.engine.plan_tiles(prepared.encoded, removed)) > 0
        forecast.forecast_study(replace(spec, max_cpu_memory=used + more))
        break
    assert refused


def test_what_is_free_decides_before_a_weight_is_read_and_an_item_that_needs_more_than_usual_gets_it(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowmem_layers.model.placement._RESERVED_SHARE", 1 << 30)  # so that the item's need decides
    spec = replace(study("gpt_neox"), offload="cpu")
    found = inspect_model(model_spec(spec))
    prepared: Any = prepare_study(spec, lambda event: None)
    tree = prefix_tree(plan_design(spec, found.shape.players).removed, len(found.shape.players))
    room = needed_room(found.shape, found.device, largest_item_bytes(prepared.encoded, found.shape, tree, 256))
    # 1) an item that needs more than states usually take
    monkeypatch.setattr("lowmem_layers.model.placement._USUAL_STATES_BYTES", room - 1)
    assert cast("Any", prepare_study(spec, lambda event: None).engine).budget_bytes == room
    assert forecast.forecast_study(spec).memory.states > 0
    # 2) less is free than it needs
    free = needed(found.shape.n_bytes, "cpu", on_gpu=False).cpu_bytes + room - 1 - found.shape.n_bytes.process
    for module in ("lowmem_layers.model.load", "lowmem_layers.forecast.memory"):
        monkeypatch.setattr(f"{module}.available_host_bytes", lambda: free)
    monkeypatch.setattr("lowmem_layers.model.load.fill_model", lambda *_: pytest.fail("weights were read"))
    for refuse in (lambda: prepare_study(spec, lambda event: None), lambda: forecast.forecast_study(spec)):
        with pytest.raises(BudgetError, match="for the states of the longest item"):
            refuse()
