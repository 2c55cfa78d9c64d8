"""Placement is arithmetic: the fastest home that fits, or a refusal with the numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowmem_layers.errors import BudgetError, ModelError, UsageError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.placement import ModelBytes, needed, place, place_with_states
from lowmem_layers.model.spec import format_bytes, parse_bytes

GIB = 1 << 30
SIZES = ModelBytes(
    packed=40 * GIB, resident=4 * GIB, slots=2 * GIB, layer_packed=GIB // 2, layer_source=2 * GIB, process=GIB
)


@pytest.mark.parametrize(
    ("gpu", "cpu", "home"), [(80, 64, "device"), (24, 64, "cpu"), (24, 16, "disk"), (8, 16, "disk"), (8, 64, "cpu")]
)
def test_auto_takes_the_fastest_home_that_fits(gpu: int, cpu: int, home: str) -> None:
    found = place(SIZES, "auto", on_gpu=True, gpu_limit=gpu * GIB, cpu_limit=cpu * GIB)
    assert found.home == home
    assert found.gpu_bytes <= gpu * GIB
    assert found.cpu_bytes <= cpu * GIB


@pytest.mark.parametrize(("cpu", "home"), [(64, "cpu"), (16, "disk")])
def test_auto_on_the_cpu(cpu: int, home: str) -> None:
    assert place(SIZES, "auto", on_gpu=False, gpu_limit=None, cpu_limit=cpu * GIB).home == home


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "auto", on_gpu=True, gpu_limit=4 * GIB, cpu_limit=64 * GIB)
    assert "--max-gpu-memory gives 4.0 GiB, 7.0 GiB are needed" in caught.value.message
    assert "--max-gpu-memory 7168MiB" in caught.value.hint
    place(SIZES, "auto", on_gpu=True, gpu_limit=7168 << 20, cpu_limit=64 * GIB)


def test_a_refused_home_names_one_that_fits() -> None:
    with pytest.raises(BudgetError) as caught:
        place(SIZES, "none", on_gpu=True, gpu_limit=24 * GIB, cpu_limit=16 * GIB)
    assert caught.value.hint == "use --offload disk (or auto), which fits"


def test_loading_counts_on_its_own() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    limit = max(alone.cpu_bytes, alone.loading_bytes)
    assert alone.loading_bytes == limit  # of these sizes, loading is the peak
    assert place(SIZES, "auto", on_gpu=False, gpu_limit=None, cpu_limit=limit).home == "cpu"
    assert place(SIZES, "auto", on_gpu=False, gpu_limit=None, cpu_limit=limit - 1).home == "disk"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_change_that_is_suggested_fits(on_gpu: bool) -> None:
    limits = {"gpu_limit": GIB, "cpu_limit": 64 * GIB} if on_gpu else {"gpu_limit": None, "cpu_limit": GIB}
    with pytest.raises(BudgetError) as caught:
        place_with_states(SIZES, "auto", on_gpu=on_gpu, **limits)
    found = re.search(r"--max-([gc]pu)-memory (\d+)MiB", caught.value.hint or "")
    assert found is not None
    limits[f"{found[1]}_limit"] = int(found[2]) << 20
    assert place_with_states(SIZES, "auto", on_gpu=on_gpu, **limits).home == ("cpu" if on_gpu else "disk")
    limits[f"{found[1]}_limit"] = (int(found[2]) - 64) << 20
    with pytest.raises(BudgetError):
        place_with_states(SIZES, "auto", on_gpu=on_gpu, **limits)


def test_an_eighth_is_left_for_states() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    enough = alone.cpu_bytes * 8 // 7 + 8
    given = {"on_gpu": False, "gpu_limit": None}
    assert place_with_states(SIZES, "auto", cpu_limit=enough, **given).home == "cpu"  # type: ignore[arg-type]
    assert place_with_states(SIZES, "auto", cpu_limit=enough - 64, **given).home == "disk"  # type: ignore[arg-type]


def test_more_is_left_for_states_where_an_item_needs_more() -> None:
    alone = needed(SIZES, "cpu", on_gpu=False)
    room = 9 * GIB
    limit = alone.cpu_bytes + room
    assert limit > alone.cpu_bytes * 8 // 7
    given = {"on_gpu": False, "gpu_limit": None, "room": room}
    assert place_with_states(SIZES, "auto", cpu_limit=limit, **given).home == "cpu"  # type: ignore[arg-type]
    assert place_with_states(SIZES, "auto", cpu_limit=limit - 1, **given).home == "disk"  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"9\.0 GiB for the states of the longest item") as caught:
        place_with_states(SIZES, "cpu", cpu_limit=9 * GIB, **given)  # type: ignore[arg-type]
    assert "--max-removed" in caught.value.hint


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
