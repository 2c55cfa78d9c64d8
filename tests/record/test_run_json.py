"""run.json: what was written is read back, and any damage is one line that names the field."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import mutate, places
from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import LowmemLayersError, RecordError


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bench_class):
    """Give a run of windows, and one of groups and removal orders."""
    root = tmp_path_factory.mktemp("runs")
    made = bench_class(model=MODEL)
    run_study(StudySpec(tasks=("one", "three"), max_removed=2), root / "windows", prepare=made.prepare)
    orders = StudySpec(tasks=("one",), players="decoder-layer", coalitions="permutations", permutations=4)
    run_study(orders, root / "orders", prepare=bench_class(model=MODEL).prepare)
    return root


@pytest.fixture(scope="module")
def bench_class():
    from tests.dictionary import Bench

    return Bench


MODEL = {
    "id": "tiny", "dtype": "float32", "fingerprint": "f", "files": ["a", "b"], "home": "cpu", "packed_bytes": 3,
    "quantisation": {"asked": "4bit", "checkpoint": None, "used": "nf4", "kept": False}, "players": 6,
    "parallel_sublayers": False,
}  # fmt: skip
WRONG = (
    None,
    True,
    -1,
    0,
    7,
    1.5,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    "",
    "x",
    "0",
    "\ud800",
    [],
    [1],
    {},
    {"a": 1},
)


def read_as(folder, stored):
    """Open the run as if its run.json were this."""
    path = folder / "run.json"
    before = path.read_bytes()
    try:
        path.write_text(stored if isinstance(stored, str) else json.dumps(stored), encoding="utf-8")
        return open_run(folder)
    finally:
        path.write_bytes(before)


def outcome(folder, stored):
    """Open such a run: give the run, or None and what the refusal says."""
    try:
        return read_as(folder, stored), ""
    except RecordError as error:
        return None, error.message


def failure(action):
    """Say with what words an action is refused; empty where it is not."""
    try:
        action()
    except LowmemLayersError as error:
        return error.message
    return ""


def stored_in(folder):
    """Read run.json, without the checksum that no changed file would fit."""
    stored = json.loads((folder / "run.json").read_text())
    del stored["checksum"]
    return stored


def test_what_was_written_is_read_back(folders):
    for name in ("windows", "orders"):
        run = open_run(folders / name)
        again = read_as(folders / name, stored_in(folders / name) | {"a_later_key": {"x": 1}})
        assert again.manifest == run.manifest
    assert run.manifest.model.placement == {"files": ["a", "b"], "home": "cpu", "packed_bytes": 3}
    assert run.manifest.model.packing == "nf4"
    assert run.manifest.resolved.permutations == run.manifest.passed.permutations == 4


def test_a_fresh_runs_manifest_is_the_one_on_disk(tmp_path, bench_class, spec):
    run = run_study(spec, tmp_path / "r", prepare=bench_class(model=MODEL).prepare)
    assert open_run(run.folder).manifest == run.manifest


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["windows", "orders"]))
def test_any_damage_is_one_line_or_does_not_matter(folders, data, name):
    """Whatever node is deleted or replaced: the run opens and gives answers, or is refused."""
    stored = stored_in(folders / name)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(stored)))
        stored = mutate(stored, path, data.draw(st.sampled_from(("delete", *WRONG))))
    run, said = outcome(folders / name, stored)
    assert "\n" not in said
    assert run is not None or "run.json" in said
    if run is not None:
        assert "\n" not in failure(lambda: run.importance("loglikelihood"))


def test_every_node_is_checked_or_ignored(folders):
    """Every single node once, so that no field is left to chance."""
    stored = stored_in(folders / "windows")
    rng = random.Random(0)
    for path in places(stored):
        for wrong in ("delete", rng.choice(WRONG), rng.choice(WRONG)):
            _, said = outcome(folders / "windows", mutate(stored, path, wrong))
            assert "\n" not in said


@pytest.mark.parametrize(
    ("path", "wrong", "said"),
    [
        (("status",), "over", "status"),
        (("elapsed_s",), math.inf, "elapsed_s"),
        (("elapsed_s",), math.nan, "elapsed_s"),
        (("elapsed_s",), "delete", "Object missing required field `elapsed_s`"),
        (("created",), "\ud800", "created is no text"),
        (("work",), -1, "work"),
        (("engine", "sizes", "head_rows"), 1e308, r"engine\.sizes"),
        (("engine", "sizes", "chunk_tokens"), 0, r"engine\.sizes"),
        (("data", 0, "items"), -1, r"data\[0\]\.items"),
        (("data", 0, "items"), True, r"data\[0\]\.items"),
        (("data", 0, "metric"), "accuracy", r"data\[0\]\.metric"),
        (("data", 0, "chance"), math.nan, r"data\[0\]\.chance"),
        (("data", 1, "task"), "one", "data: 2 tasks, 1 of them distinct"),
        (("data", 1, "items"), 6, "tiles"),
        (("model", "id"), 3, r"model\.id"),
        (("model", "id"), "delete", "model: Object missing required field `id`"),
        (("engine",), [], "engine"),
        (("machine", "threads"), -2, r"machine\.threads"),
        (("versions", "numpy"), 2, "versions"),
        (("identity",), None, "identity"),
        (("spec", "resolved", "quant"), "5bit", r"spec\.resolved: --quant '5bit'"),
        (("spec", "resolved", "quant"), "delete", r"spec\.resolved\.quant is missing"),
        (("spec", "resolved", "model"), None, r"spec\.resolved\.model is missing"),
        (("spec", "resolved", "max_removed"), 9, "players: 6"),
        (("spec", "passed", "tasks"), "one", r"spec\.passed\.tasks"),
        (("players",), "attn.0 attn.0", "players: 2 sublayers, 1 of them distinct"),
        (("players",), "", "players"),
        (("players",), "attn.0 x", "players"),
        (("removed", 1), "6", "removed: 6 is outside the 6"),
        (("removed", 1), "0 0", "removed: a coalition is not sorted"),
        (("removed", 1), "1", "occurs twice"),
        (("removed", 0), "delete", "the full model"),
        (("removed", 1), "²", "removed: '²' is no list of numbers"),
        (("tiles", 0), "0-999999999", "tiles: '0-999999999' is not a list of 15 items"),
        (("tiles", 0), "0 2 5", "tiles: they do not hold each of 15 items once"),
        (("tiles", 0), "delete", "tiles: they do not hold each of 15 items once"),
        (("tiles", 0), "0 2 x", "tiles"),
        (("groups",), [["a", "0"], ["a", "1"]], "players or groups"),
        (("groups",), [["a", "9"]], "groups: 9 is outside the 6"),
        (("orders",), ["0 1 2 3 4 5"], "cuts"),
    ],
)  # fmt: skip
def test_the_field_is_named(folders, path, wrong, said):
    with pytest.raises(RecordError, match=rf"run\.json is damaged: .*{said}"):
        read_as(folders / "windows", mutate(stored_in(folders / "windows"), path, wrong))


@pytest.mark.parametrize(
    ("path", "wrong", "said"),
    [
        (("orders", 0), "0 1 1", "orders: one does not hold each of 3 players once"),
        (("cuts", 0), 9, "cuts"),
        (("cuts",), "delete", "cuts"),
        (("orders",), "delete", "cuts"),
    ],
)
def test_orders_that_do_not_fit_are_named(folders, path, wrong, said):
    with pytest.raises(RecordError, match=said):
        read_as(folders / "orders", mutate(stored_in(folders / "orders"), path, wrong))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 1, "x": ' + "9" * 5000 + "}", "NaN", '"\\ud800"', "null"])
def test_odd_files_are_refused(folders, text):
    with pytest.raises(RecordError, match=r"run\.json"):
        read_as(folders / "windows", text)


@pytest.mark.parametrize(("path", "value"), [(("data", 0, "chance"), 0.5), (("model", "id"), "other"), (("seed",), 1)])
def test_a_change_that_makes_sense_is_found_by_the_checksum(folders, path, value):
    stored = json.loads((folders / "windows" / "run.json").read_text())
    assert read_as(folders / "windows", stored).manifest.status == "done"
    with pytest.raises(RecordError, match=r"run\.json is not as it was written") as caught:
        read_as(folders / "windows", mutate(stored, path, value))
    assert 'remove its line "checksum"' in caught.value.hint
    assert read_as(folders / "windows", mutate(stored_in(folders / "windows"), path, value))


@pytest.mark.parametrize(("schema", "hint"), [(2, "update yours"), (0, "another folder"), ("1", "another folder")])
def test_other_schemas_are_refused(folders, schema, hint):
    with pytest.raises(RecordError, match="has schema") as caught:
        read_as(folders / "windows", stored_in(folders / "windows") | {"schema": schema})
    assert hint in caught.value.hint


def test_numbers_of_a_self_test_may_be_missing(folders):
    """A model that takes no tries leaves NaN in its self-test: that is a finding, not damage."""
    stored = mutate(
        stored_in(folders / "windows"), ("engine", "self_test"), {"takes_tries": False, "trie_gap": math.nan}
    )
    assert math.isnan(read_as(folders / "windows", stored).manifest.engine.self_test["trie_gap"])
