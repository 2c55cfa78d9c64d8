"""`benchmarks.gpu` keeps what it found when a case fails; its sections run where there is no card, in tiny shapes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import against, cards, correct, fast, memory
from benchmarks.gpu.setting import Case, Result, Setting, random_model
from lowmem_layers.errors import BudgetError
from lowmem_layers.model.formats import Packed


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), torch.float32, tiny=True, folder=tmp_path, ends=time.monotonic() + 1000)


def test_a_case_that_fails_is_written_down_and_the_next_goes_on(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Result:
        raise RuntimeError("no kernel")

    def first(_: Setting) -> Iterator[Case]:
        yield "broken", fail
        yield "whole", lambda: {"right": True, "gap": 0.25}
        raise ValueError("the list itself")

    def second(_: Setting) -> Iterator[Case]:
        yield "late", lambda: {"right": False}

    monkeypatch.setattr(command.gc, "collect", lambda: 0)  # of all that the tests before have made
    monkeypatch.setattr(command, "SECTIONS", {"first": (first, 0.5), "second": (second, 0.5)})
    command.run(setting, ["first", "second"], 1.0, lambda: command.save(setting, {"options": {}}, setting.folder))
    found = json.loads((setting.folder / "gpu.json").read_text())["sections"]
    assert found["first"]["broken"]["error"] == "RuntimeError: no kernel"
    assert found["first"]["whole"]["gap"] == 0.25
    assert found["first"]["section"]["error"] == "ValueError: the list itself"
    assert found["second"]["late"]["right"] is False
    text = (setting.folder / "gpu.md").read_text()
    assert "## first: 1 of 1 right" in text
    assert "## second: 0 of 1 right" in text
    setting.ends = time.monotonic() - 1
    assert "skipped" in command.attempt(setting, fail)


def test_another_process_goes_on_where_the_gpu_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal access CUDA gives a process no further answer, not even to the question for free memory."""
    started: list[list[str]] = []

    def fail() -> Result:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def cases(_: Setting) -> Iterator[Case]:
        yield "before", lambda: {"figure": 1}
        yield "broken", fail
        yield "behind", lambda: {"figure": 2}

    monkeypatch.setattr(command.gc, "collect", lambda: 0)
    monkeypatch.setattr(command, "SECTIONS", {"first": (cases, 1.0)})
    monkeypatch.setattr(command.os, "execv", lambda _, words: started.append(words[3:]))
    words = ["benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(command.sys, "argv", words)
    command.main()
    (again,) = started
    assert "--go-on" in again
    monkeypatch.setattr(command.sys, "argv", [words[0], *again])
    command.main()
    assert len(started) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]["first"]
    assert [result.get("figure") for result in found.values()] == [1, None, 2]
    assert "illegal memory access" in found["broken"]["error"]


def test_a_failure_that_is_seen_late_does_not_lose_its_case(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.device) -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(command.gc, "collect", lambda: 0)
    monkeypatch.setattr(command, "release_cached", fail)
    result = command.attempt(setting, lambda: {"figure": 1})
    assert (result["figure"], result["gpu failed"]) == (1, True)
    assert "launch failure" in result["error"]


def test_a_format_without_a_kernel_here_does_not_lose_the_others(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(packed: Packed, out: torch.Tensor, real: Any = correct.unpack) -> None:
        if packed.settings.get("quant_type") == "Q4_K" and out.dtype == torch.bfloat16 and len(calls) % 2:
            raise NotImplementedError("no kernel for these numbers")
        calls.append(out.dtype)
        real(packed, out)

    calls: list[torch.dtype] = []
    monkeypatch.setattr(correct, "unpack", unpack)
    monkeypatch.setattr(correct, "BLOCKS", {name: correct.BLOCKS[name] for name in ("Q4_0", "Q4_K", "Q8_0")})
    monkeypatch.setitem(sys.modules, "tests.model.test_formats_scaled", None)  # as if pytest were missing
    result = correct._formats(setting)
    assert result["wrong"] == ["Q4_K in torch.bfloat16: NotImplementedError: no kernel for these numbers"]
    assert result["formats"] == 5


def test_a_family_of_few_players_is_compared(setting: Setting) -> None:
    assert correct.compare_family(setting, "mamba", torch.float64)["right"]


def test_a_host_that_is_too_small_is_a_failed_case(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end the process, and with it all cases behind this one."""
    monkeypatch.setattr("benchmarks.gpu.setting.available_host_bytes", lambda: 1000)
    with pytest.raises(BudgetError, match="GiB of host memory are needed"):
        random_model(setting, "llama-3-8b", "cpu")


def test_a_card_is_known_by_the_name_that_its_driver_gives() -> None:
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA GeForce RTX 4060 Ti": "rtx-4060-ti", "Tesla T4": "t4"}
    names["NVIDIA GeForce RTX 4060 Laptop GPU"] = "rtx-4060-laptop"
    for name, card in names.items():
        found = cards.named_in(name)
        assert found is not None
        assert found.name == card
    assert cards.named_in("Radeon") is None


@pytest.mark.parametrize("shape", ["llama-3-8b", "mixtral-8x7b"])
def test_the_parts_of_a_tile_are_told_apart(setting: Setting, shape: str) -> None:
    found = fast.parts(setting, random_model(setting, shape, "device"), 10**6)
    inside = {part: found.pop(part) for part in ("attention", "feed-forward", "unpacking", "head", "forks")}
    assert all(seconds > 0 for seconds in inside.values()), inside
    assert inside["unpacking"] < found["watched"]
    assert sum(inside.values()) < found["watched"], "no part is counted twice"


@pytest.mark.slow
@pytest.mark.parametrize("section", [correct, fast, memory, against], ids=lambda section: section.__name__[15:])
def test_every_case_runs_and_is_right_in_tiny_shapes_on_the_cpu(section: object, setting: Setting) -> None:
    for name, measure in section.cases(setting):  # type: ignore[attr-defined]
        result = command.attempt(setting, measure)
        assert "error" not in result, (name, result)
        assert result.get("right", True), (name, result)
