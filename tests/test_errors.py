"""The error tree keeps its exit statuses, and an unknown name is answered by the known ones that resemble it."""

from __future__ import annotations

import pytest

from lowmem_layers import errors
from lowmem_layers.errors import did_you_mean

TASKS = ("quick", "boolq", "arc_easy", "arc_challenge", "piqa")


@pytest.mark.parametrize(
    ("name", "n", "answer"),
    [
        ("bool", 1, "did you mean boolq? "),
        ("QUICK", 1, "did you mean quick? "),
        ("arc-easy", 1, "did you mean arc_easy? "),
        ("arc", 3, "did you mean arc_easy? "),
        ("arc_eas_challenge", 2, "did you mean arc_challenge or arc_easy? "),
        ("arc_", 1, "did you mean arc_easy? "),
        ("zzz", 3, ""),
        ("", 1, ""),
    ],
)
def test_an_unknown_name_is_answered_by_the_names_that_resemble_it(name, n, answer):
    assert did_you_mean(name, TASKS, n) == answer


def test_names_that_are_equally_near_are_all_named():
    assert did_you_mean("5bit", ("none", "4bit", "8bit")) == "did you mean 4bit or 8bit? "


def test_the_answer_spells_a_name_as_it_is_known():
    assert did_you_mean("aradice", ["AraDiCE", "other"]) == "did you mean AraDiCE? "


def test_bad_usage_leaves_with_2_and_a_broken_promise_with_1():
    tree = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    statuses = {one.__name__: one.exit_status for one in tree}
    assert {name for name, status in statuses.items() if status == 1} == {
        "LowmemLayersError",
        "EngineError",
        "ShortageError",
        "WorkerError",
    }
    assert all(issubclass(one, errors.LowmemLayersError) for one in tree)
