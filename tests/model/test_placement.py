"""Placement is arithmetic: the fastest home that fits, or a refusal with the numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lowmem_layers.errors import BudgetError, ModelError, UsageError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.placement import (
    GPU_CONTEXT_BYTES,
    MemoryLimits,
    ModelBytes,
    limits_now,
    needed,
    place,
    place_with_states,
)
from lowmem_layers.model.spec import format_bytes, parse_bytes

GIB = 1 << 30
SIZES = ModelBytes(
    packed=40 * GIB, resident=4 * GIB, slots=2 * GIB, layer_packed=GIB // 2, layer_source=2 * GIB, process=GIB
)


@pytest.mark.parametrize(
    ("gpu", "cpu", "home"), [(80, 64, "device"), (24, 64, "cpu"), (24, 16, "disk"), (8, 16, "disk"), (8, 64, "cpu")]
)
def test_auto_takes_the_fastest_home_that_fits(gpu: int, cpu: int, home: str) -> None:
    found = place(SIZES, "auto", MemoryLimits(True, gpu * GIB, cpu * GIB))
    assert found.home == home
    assert found.gpu_bytes <= gpu * GIB
    assert found.cpu_bytes <= cpu * GIB


@pytest.mark.parametrize(("cpu", "home"), [(64, "cpu"), (16, "disk")])
def test_auto_on_the_cpu(cpu: int, home: str) -> None:
    assert place(SIZES, "auto", MemoryLimits(False, 0, cpu * GIB)).home == home


@pytest.mark.parametrize(("cpu", "home", "shelf"), [(64, "cpu", 8), (48, "cpu", 0), (24, "disk", 8), (14, "disk", 0)])
def test_quantised_weights_are_kept_where_there_is_room_but_never_for_a_slower_home(cpu: int, home: str, shelf: int):
    found = place(replace(SIZES, shelf=8 * GIB), "auto", MemoryLimits(False, 0, cpu * GIB))
    assert (found.home, found.shelf_bytes) == (home, shelf * GIB)
    plain = place(SIZES, "auto", MemoryLimits(False, 0, cpu * GIB))
    assert found.cpu_bytes == plain.cpu_bytes + found.shelf_bytes
    assert found.states_bytes == plain.states_bytes - found.shelf_bytes


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "auto", MemoryLimits(True, 4 * GIB, 64 * GIB))
    assert "--max-gpu-memory gives 4.0 GiB, 7.6 GiB are needed" in caught.value.message
    assert "--max-gpu-memory 7744MiB" in caught.value.hint
    place(SIZES, "auto", MemoryLimits(True, 7744 << 20, 64 * GIB))


@pytest.mark.parametrize(
    ("gpu", "free_gpu", "hint"),
    [
        (2 * GIB, 20 * GIB, "the smallest change that fits: --max-gpu-memory 7744MiB"),
        (2 * GIB, 3 * GIB, "the GPU has no more than 3.5 GiB free: close other programs"),
        (None, 3 * GIB, "the GPU has no more than 3.5 GiB free: close other programs"),
    ],
)
def test_no_option_is_advised_that_asks_for_more_than_there_is(gpu: int | None, free_gpu: int, hint: str) -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "auto", limits_now(on_gpu=True, gpu=gpu, cpu=None, free_gpu=free_gpu, free_cpu=64 * GIB))
    assert caught.value.hint.startswith(hint)


def test_a_machine_without_the_memory_is_told_so() -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "auto", limits_now(on_gpu=False, gpu=None, cpu=None, free_gpu=0, free_cpu=1 * GIB))
    assert caught.value.hint.startswith("the machine has no more than 1.0 GiB free: close other programs")


def test_a_refused_home_names_one_that_fits() -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "none", MemoryLimits(True, 24 * GIB, 16 * GIB))
    assert caught.value.hint == "use --offload disk (or auto), which fits"


def test_loading_counts_on_its_own() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    limit = max(alone.cpu_bytes, alone.loading_bytes)
    assert alone.loading_bytes == limit  # of these sizes, loading is the peak
    assert place(SIZES, "auto", MemoryLimits(False, 0, limit)).home == "cpu"
    assert place(SIZES, "auto", MemoryLimits(False, 0, limit - 1)).home == "disk"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_change_that_is_suggested_fits(on_gpu: bool) -> None:
    limits = MemoryLimits(True, GIB, 64 * GIB) if on_gpu else MemoryLimits(False, 0, GIB)
    with pytest.raises(BudgetError) as caught:
        place_with_states(SIZES, "auto", limits)
    found = re.search(r"--max-([gc])pu-memory (\d+)MiB", caught.value.hint or "")
    assert found is not None
    limits = replace(limits, **{f"{found[1]}pu": int(found[2]) << 20})
    assert place_with_states(SIZES, "auto", limits).home == ("cpu" if on_gpu else "disk")
    limits = replace(limits, **{f"{found[1]}pu": (int(found[2]) - 64) << 20})
    with pytest.raises(BudgetError):
        place_with_states(SIZES, "auto", limits)


def test_an_eighth_is_left_for_states() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    enough = alone.cpu_bytes * 8 // 7 + 8
    assert place_with_states(SIZES, "auto", MemoryLimits(False, 0, enough)).home == "cpu"
    assert place_with_states(SIZES, "auto", MemoryLimits(False, 0, enough - 64)).home == "disk"


def test_more_is_left_for_states_where_an_item_needs_more() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    room = 9 * GIB
    limit = alone.cpu_bytes + room
    assert limit > alone.cpu_bytes * 8 // 7
    assert place_with_states(SIZES, "auto", MemoryLimits(False, 0, limit), room=room).home == "cpu"
    assert place_with_states(SIZES, "auto", MemoryLimits(False, 0, limit - 1), room=room).home == "disk"
    with pytest.raises(BudgetError, match=r"9\.0 GiB for the states of the longest item") as caught:
        place_with_states(SIZES, "cpu", MemoryLimits(False, 0, 9 * GIB), room=room)
    assert "--max-removed" in caught.value.hint


@pytest.mark.parametrize("asked", [None, 30 * GIB, 200 * GIB])
@pytest.mark.parametrize("room", [GIB, 12 * GIB])
def test_states_get_what_placement_promised(asked: int | None, room: int) -> None:
    """An item fits beside the weights wherever a home was found for them: one function decides for both."""
    for free in range(8, 90, 2):
        limits = limits_now(on_gpu=True, gpu=asked, cpu=None, free_gpu=free * GIB, free_cpu=64 * GIB)
        assert limits.gpu <= free * GIB + GPU_CONTEXT_BYTES, "never more than what is free"
        try:
            found = place_with_states(SIZES, "auto", limits, room=room)
        except BudgetError:
            continue
        assert found.states_bytes >= room
        assert found.gpu_bytes + found.states_bytes == limits.gpu


def test_states_on_a_cpu_take_two_gib_or_what_an_item_needs_of_what_is_there() -> None:
    for free, room, states in [(64, 0, 2), (64, 5, 5), (12, 0, 2)]:
        limits = limits_now(on_gpu=False, gpu=None, cpu=None, free_gpu=0, free_cpu=free * GIB)
        assert place_with_states(SIZES, "disk", limits, room=room * GIB).states_bytes == states * GIB
    limits = limits_now(on_gpu=False, gpu=None, cpu=None, free_gpu=0, free_cpu=9 * GIB)
    with pytest.raises(BudgetError, match="for the states of the longest item"):
        place_with_states(SIZES, "disk", limits, room=5 * GIB)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(llama_folder: Path) -> None:
    with pytest.raises(BudgetError, match=r"--max-cpu-memory gives 50\.0 MiB"):
        load_model(ModelSpec(str(llama_folder), device="cpu", max_cpu_memory=50 << 20, cache=False))


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("8GiB", 8 * GIB), ("1.5 GB", 1_500_000_000), ("512m", 512_000_000), ("64MiB", 64 << 20), ("123", 123)],
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "lots", "8 apples", "-3GB", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GiB", "8388608TiB"])
def test_a_size_beyond_64_bits_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="more bytes than 64 bits can count"):
        parse_bytes(text)


def test_sizes_are_written() -> None:
    assert [format_bytes(n) for n in (5, 2048, 3 << 20, 5 * GIB, 3 << 40)] == [
        "5 B", "2.0 KiB", "3.0 MiB", "5.0 GiB", "3.0 TiB",
    ]  # fmt: skip


def test_options_have_choices() -> None:
    with pytest.raises(ModelError, match="quant '3bit' does not exist"):
        ModelSpec(quant="3bit")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="max_gpu_memory is 0 bytes"):
        ModelSpec(max_gpu_memory=0)
