"""Where memory runs out in a tile, the tile is computed again in smaller chunks, and the record says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.engine import engine as engines
from lowmem_layers.engine.engine import ready_engine
from lowmem_layers.engine.sweep import Sizes, Sweep
from lowmem_layers.errors import RemovalError, ShortageError
from lowmem_layers.findings.run import open_run
from lowmem_layers.model.anatomy import branches
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.removal import refusing
from lowmem_layers.model.memory import is_shortage
from tests.engine.conftest import random_items
from tests.families import tiny_model

COALITIONS = [(), (0,), (1,), (1, 2), (3,)]
SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("can't start new thread"),  # no room for its stack
    MemoryError(),
]


@pytest.fixture(scope="module")
def model() -> DecoderModel:
    return DecoderModel(tiny_model("llama"))


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, above: int) -> None:
    """Let memory run out in the middle of a sweep whose chunks have more tokens than `above`."""
    real = Sweep._visit

    def visit(self: Sweep, layer: int, live: Any, *rest: Any) -> None:
        if layer == 1 and self.sizes.chunk_tokens > above:
            raise error
        real(self, layer, live, *rest)

    monkeypatch.setattr(Sweep, "_visit", visit)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:24] or "MemoryError")
def test_a_tile_is_computed_again_in_smaller_chunks(model, monkeypatch, error) -> None:
    items = random_items(4)
    expected = ready_engine(model, layout="rows").score(items, COALITIONS)
    engine = ready_engine(model, layout="rows", sizes=Sizes(1024, 512, 64))
    failing(monkeypatch, error, above=400)
    told: list[int] = []
    found = engine.score(items, COALITIONS, told.append)
    assert [each["chunk_tokens"] for each in engine.describe()["narrowed"]] == [512, 256]
    assert engine.describe()["narrowed"][0]["first_item"] == items[0].id
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert sum(told) == ready_engine(model, layout="rows").work(items, COALITIONS), "work that was lost is not counted"
    engine.score(items, COALITIONS)
    assert len(engine.narrowed) == 2, "later tiles keep the smaller chunks"


def test_smaller_chunks_of_an_earlier_call_do_not_change_what_the_run_is(model) -> None:
    planned, left = Sizes(1024, 512, 64), Sizes(256, 128, 64)
    engine = ready_engine(model, layout="rows", sizes=planned, narrowed_to=left)
    assert engine.sizes == left
    assert engine.describe()["sizes"]["chunk_tokens"] == 1024
    assert "narrowed" not in engine.describe()


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_chunks_that_memory_left(tmp_path, monkeypatch) -> None:
    """What is asked of memory at the second start is what the run needs now, and the plan stays the first one's."""
    options = ["run", "--limit", "2", "--max-removed", "0", "--out", str(tmp_path / "r"), "--no-cache"]
    real_score = engines.Engine.score

    def score(self: engines.Engine, *of: Any) -> Any:  # the examination, before it, has the memory that it needs
        failing(patch, SHORTAGES[0], above=300)
        return real_score(self, *of)

    with monkeypatch.context() as patch:
        patch.setattr(engines.Engine, "score", score)
        assert run_command_line(options) == 0
    first = open_run(tmp_path / "r").manifest.engine
    assert [first.sizes["chunk_tokens"], first.sizes_now["chunk_tokens"]] == [1024, 256]
    assert first.memory["host_peak_bytes"] > 1 << 26
    (tmp_path / "r" / "scores" / "tile-00000.parquet").unlink()
    seen: list[tuple[int, ...]] = []
    real = Sweep.visit_layers
    monkeypatch.setattr(
        Sweep, "visit_layers", lambda self, live: (seen.append(self.sizes.chunk_tokens), real(self, live))[1]
    )
    assert run_command_line(options) == 0
    second = open_run(tmp_path / "r").manifest.engine
    assert set(seen) == {256}
    assert (second.sizes, second.narrowed) == (first.sizes, first.narrowed)


def test_the_end_of_all_tries_is_one_line_with_a_hint(model, monkeypatch) -> None:
    engine = ready_engine(model, layout="rows")
    failing(monkeypatch, SHORTAGES[0], above=0)
    with pytest.raises(ShortageError, match="out of memory in chunks of 256 tokens, the smallest") as caught:
        engine.score(random_items(2), COALITIONS)
    assert "finished tiles are kept" in caught.value.hint
    assert caught.value.exit_status == 1


def test_other_errors_are_not_taken_for_a_shortage(model, monkeypatch) -> None:
    engine = ready_engine(model, layout="rows")
    failing(monkeypatch, RuntimeError("shapes do not match"), above=0)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.score(random_items(2), COALITIONS)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:24] or "MemoryError")
def test_a_shortage_is_never_taken_for_a_fault_of_the_models_code(model, error) -> None:
    assert is_shortage(error)
    with pytest.raises(type(error)) as caught, refusing(model.module, "tested"):
        raise error
    assert not isinstance(caught.value, RemovalError)


@pytest.mark.parametrize("words", ["an illegal memory access was encountered", "no kernel image is available"])
def test_a_gpu_that_fails_is_never_taken_for_a_fault_of_the_models_code(model, words, monkeypatch, capsys) -> None:
    error = torch.AcceleratorError(f"CUDA error: {words}\nFor debugging consider …")
    assert not is_shortage(error)
    with pytest.raises(torch.AcceleratorError), refusing(model.module, "tested"):
        raise error
    engine = ready_engine(model, layout="rows")
    failing(monkeypatch, error, above=0)
    with pytest.raises(torch.AcceleratorError):
        engine.score(random_items(2), COALITIONS)
    assert not engine.narrowed

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("lowmem_layers.cli.app.app.main", fail)
    assert run_command_line(["run"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: the GPU failed: CUDA error: {words}"
    assert len(said) == 2


def test_the_form_of_a_branch_is_not_looked_for_on_a_gpu_that_fails(monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(branches, "branch_output", fail)
    with pytest.raises(torch.AcceleratorError):
        ready_engine(DecoderModel(tiny_model("llama")))


def test_a_shortage_while_the_model_is_examined_is_raised_as_it_is(monkeypatch) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise SHORTAGES[0]

    monkeypatch.setattr(engines, "examine_engine", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        ready_engine(DecoderModel(tiny_model("llama")))
