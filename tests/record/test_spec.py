"""Options as passed become options as resolved, or a clear refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.record.spec import PAPER_TASKS, StudySpec, default_folder, spec_from_json
from lowmem_layers.record.tile_plan import parse_tile, spell_tile


def test_defaults():
    resolved = StudySpec().resolved()
    assert (resolved.quant, resolved.tasks, resolved.max_removed, resolved.device) == ("none", ("quick",), 4, "auto")


def test_the_papers_preset_and_what_overrides_it():
    resolved = StudySpec(preset="paper", limit=50).resolved()
    assert (resolved.tasks, resolved.limit, resolved.bos) == (PAPER_TASKS, 50, "none")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"quant": "4-bit"}, "--quant '4-bit' is not known", "did you mean 4bit?"),
        ({"dtype": "bfloat"}, "--dtype", "did you mean bfloat16?"),
        ({"device": "gpu"}, "--device", "auto, cpu, cuda"),
        ({"preset": "papers"}, "--preset", "did you mean paper?"),
        ({"value": "accuracy"}, "--value", "acc"),
        ({"limit": 0}, "--limit 0 is too small", "at least 1"),
        ({"max_removed": -1}, "--max-removed -1", "at least 0"),
        ({"tasks": ()}, "no task", "--tasks"),
        ({"tasks": ("quick", "quick")}, "named twice", "once"),
        ({"until": "top"}, "no statement to stop at", "top3"),
        ({"until": "top3", "coalitions": "permutations"}, "noise of their own", "leave --until out"),
    ],
)
def test_bad_values_are_refused_with_the_nearest_good_one(options, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        StudySpec(**options).resolved()
    assert hint in caught.value.hint


def test_the_folder_follows_from_the_spec():
    spec = StudySpec(quant="4bit")
    assert default_folder(spec) == default_folder(StudySpec(quant="4bit", tasks=("quick",), max_removed=4))
    assert default_folder(spec).parent == Path("runs")
    assert default_folder(spec).name.startswith("smollm2-135m-instruct-4bit-quick-")
    others = [
        replace(spec, limit=5),
        replace(spec, max_removed=1),
        replace(spec, seed=1),
        replace(spec, dtype="float32"),
    ]
    assert len({default_folder(other) for other in [spec, *others]}) == 5
    assert default_folder(replace(spec, offload="disk", value="margin")) == default_folder(spec)


def test_odd_names_give_plain_folders():
    folder = default_folder(StudySpec(model="/some where/Ünï/Model v1.5", tasks=("a/b.toml", "boolq")))
    assert folder.name.startswith("model-v1.5-none-b+1-")


def test_json_round_trip():
    spec = StudySpec(tasks=("a", "b"), limit=3, max_cpu_memory=5)
    assert spec_from_json(spec.to_json() | {"a_later_option": 1}) == spec


@given(st.sets(st.integers(0, 60)))
def test_tiles_are_spelled_and_read_back(tile):
    assert parse_tile(spell_tile(sorted(tile))) == tuple(sorted(tile))


def test_tiles_are_spelled_as_ranges():
    assert spell_tile((0, 1, 2, 5, 7, 8)) == "0-2 5 7-8"
