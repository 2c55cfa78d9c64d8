"""Options as passed become options as resolved, or a clear refusal."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.design import CoalitionsKind
from lowmem_layers.game.players.groups import PlayersOption
from lowmem_layers.record.spec import BOS, COALITIONS, PAPER_TASKS, PLAYERS, StudySpec, default_folder
from lowmem_layers.record.tile_plan import parse_tile, spell_tile
from lowmem_layers.tasks.encode import Bos


def test_defaults():
    resolved = StudySpec().resolved()
    assert (resolved.quant, resolved.tasks, resolved.max_removed, resolved.device) == ("none", ("quick",), 4, "auto")


def test_the_papers_preset_and_what_overrides_it():
    resolved = StudySpec(preset="paper", limit=50).resolved()
    assert (resolved.tasks, resolved.limit, resolved.bos, resolved.max_removed) == (PAPER_TASKS, 50, "none", 4)
    as_code = StudySpec(preset="paper-code").resolved()
    assert (as_code.tasks, as_code.limit, as_code.bos, as_code.max_removed) == (PAPER_TASKS, 1000, "none", 3)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"quant": "4-bit"}, "--quant '4-bit' is not known", "did you mean 4bit?"),
        ({"dtype": "bfloat"}, "--dtype", "did you mean bfloat16?"),
        ({"device": "gpu"}, "--device", "auto, cpu, cuda"),
        ({"preset": "papers"}, "--preset", "did you mean paper?"),
        ({"value": "accuracy"}, "--value", "acc"),
        ({"limit": 0}, "--limit 0 is too small", "at least 1"),
        ({"threads": 10**45}, "is too large", "at most 4096"),
        ({"limit": 1 << 31}, "--limit 2147483648 is too large", "at most 2147483647"),
        ({"max_removed": -1}, "--max-removed -1", "at least 0"),
        ({"seed": -1, "until": "top3"}, "--seed -1 is too small", "at least 0"),
        ({"seed": -1, "coalitions": "permutations"}, "--seed -1 is too small", "at least 0"),
        ({"tasks": ()}, "no task", "--tasks"),
        ({"tasks": ("quick", "quick")}, "named twice", "once"),
        ({"revision": "\ud800"}, r"--revision is no text: '\\ud800'", "UTF-8"),
        ({"tasks": ("quick", "a\0b")}, "--tasks is no text", "zero bytes"),
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


USUAL = {
    "model": "SmolLM2-135M-Instruct", "revision": None, "trust_remote_code": False, "quant": "none",
    "requantize": False, "dtype": None, "tasks": ["quick"], "limit": None, "fewshot": None, "window": 512,
    "stride": 256, "bos": "auto", "max_removed": 4, "until": None, "seed": 0,
}  # fmt: skip
# Options, the folder that the first release named after them, and what it recorded of them beside the usual.
RECORDED = [
    ({}, "smollm2-135m-instruct-none-quick-340bba", {}),
    (
        {"preset": "paper"},
        "smollm2-135m-instruct-none-boolq+5-24ed54",
        {"tasks": list(PAPER_TASKS), "limit": 1000, "bos": "none"},
    ),
    (
        {"quant": "4bit", "dtype": "float32"},
        "smollm2-135m-instruct-4bit-quick-e9261f",
        {"quant": "4bit", "dtype": "float32"},
    ),
    (
        {
            "tasks": ("one", "three"), "max_removed": 2, "value": "margin", "until": "top3", "data_dir": "data/",
            "seed": 3,
        },
        "smollm2-135m-instruct-none-one+1-fad408",
        {"tasks": ["one", "three"], "max_removed": 2, "until": "top3", "seed": 3, "value": "margin"},
    ),
    (
        {"coalitions": "permutations"},
        "smollm2-135m-instruct-none-quick-96320e",
        {"coalitions": "permutations"},
    ),
    (
        {"coalitions": "permutations", "permutations": 32, "players": "attention", "device": "cpu"},
        "smollm2-135m-instruct-none-quick-5fc565",
        {"players": "attention", "coalitions": "permutations", "permutations": 32},
    ),
    (
        {
            "model": "/some where/Ünï/Model v1.5", "tasks": ("a/b.toml", "text:x.txt"), "limit": 9, "fewshot": 2,
            "fewshot_file": "f.jsonl", "window": 64, "stride": 32, "bos": "always", "revision": "main",
            "trust_remote_code": True, "requantize": True, "offload": "disk", "max_gpu_memory": 5,
            "max_cpu_memory": 7, "cache": False, "threads": 3,
        },
        "model-v1.5-none-b+1-2a4221",
        {
            "model": "/some where/Ünï/Model v1.5", "tasks": ["a/b.toml", "text:x.txt"], "limit": 9, "fewshot": 2,
            "window": 64, "stride": 32, "bos": "always", "revision": "main", "trust_remote_code": True,
            "requantize": True,
        },
    ),
    (
        {"players": "a=attn.0+ffn.0,b=ffn.1", "coalitions": "all"},
        "smollm2-135m-instruct-none-quick-01174b",
        {"players": "a=attn.0+ffn.0,b=ffn.1", "coalitions": "all"},
    ),
    (
        {
            "preset": "paper", "limit": 50, "tasks": ("boolq",), "max_removed": 0, "players": "sublayer",
            "coalitions": "windows",
        },
        "smollm2-135m-instruct-none-boolq-a4e41f",
        {"tasks": ["boolq"], "limit": 50, "bos": "none", "max_removed": 0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "folder", "recorded"), RECORDED, ids=[folder for _, folder, _ in RECORDED])
def test_identity_and_folder_are_those_of_earlier_records(options, folder, recorded):
    spec = StudySpec(**options)
    assert default_folder(spec) == default_folder(spec.resolved()) == Path("runs") / folder
    assert spec.resolved().identity() == USUAL | recorded


def test_a_specification_misses_nothing():
    meant = StudySpec(coalitions="permutations").resolved()
    assert meant.resolved() is meant
    assert meant.passed == StudySpec(coalitions="permutations")
    assert (meant.dtype, meant.permutations, meant.seed) == ("auto", 32, 0)
    assert StudySpec().resolved().permutations is None, "no orders are drawn for windows"
    assert list(meant.to_json()) == [field.name for field in fields(StudySpec)]
    assert meant.to_json()["dtype"] is None


def test_what_was_passed_is_written_without_what_was_not():
    assert StudySpec(tasks=("a", "b"), limit=3).to_json() == {
        "trust_remote_code": False, "requantize": False, "tasks": ["a", "b"], "limit": 3, "cache": True,
        "trust_task_code": False,
    }  # fmt: skip


def test_choices_are_those_of_the_rooms_that_make_them():
    """Help lists them without importing those rooms, which need numpy."""
    assert get_args(Bos) == BOS
    assert get_args(CoalitionsKind) == COALITIONS
    assert get_args(PlayersOption) == PLAYERS


@given(st.sets(st.integers(0, 60)))
def test_tiles_are_spelled_and_read_back(tile):
    assert parse_tile(spell_tile(sorted(tile)), 61) == tuple(sorted(tile))


def test_tiles_are_spelled_as_ranges():
    assert spell_tile((0, 1, 2, 5, 7, 8)) == "0-2 5 7-8"


def test_a_change_is_part_of_a_runs_identity_and_removal_is_what_it_was_before():
    plain, quantised = StudySpec().resolved(), StudySpec(change="quantise:Q4_0").resolved()
    assert plain.change == "remove"
    assert "change" not in plain.identity()
    assert StudySpec(change="remove").resolved().identity() == plain.identity()
    assert quantised.identity() == plain.identity() | {"change": "quantise:q4_0"}
    assert default_folder(quantised) != default_folder(plain)
