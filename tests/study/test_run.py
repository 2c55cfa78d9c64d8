"""A run, interrupted anywhere and resumed, is the run that nobody interrupted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import DamagedError, RecordError, UsageError
from lowmem_layers.record.items import items_table, rows_of
from lowmem_layers.record.lock import locked
from lowmem_layers.record.scores import write_table
from lowmem_layers.study.events import Noted, RunFinished, RunPlanned, StageStarted, TileCommitted, WorkDone
from lowmem_layers.study.tiles import is_look
from tests.dictionary import make_item


def digests(folder: Path) -> dict[str, str]:
    """Hash every file of scores, and the items."""
    files = sorted([*folder.glob("scores/*"), folder / "items.parquet"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_run_records_every_item_coalition_and_choice(tmp_path, bench, spec):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    scores, items = run.scores(), run.items()
    n_coalitions = 1 + 6 + 5
    assert scores.column_names == ["task", "item", "removed", "choice", "loglikelihood", "gold"]
    assert len(scores) == n_coalitions * len(items)
    assert {"", "attn.0", "attn.0+ffn.0", "ffn.0+attn.1"} < set(scores["removed"].to_pylist())
    assert sum(scores["gold"].to_pylist()) == n_coalitions * len({(r["task"], r["item"]) for r in items.to_pylist()})
    first = [row["item"] for row in scores.to_pylist()]
    assert list(dict.fromkeys(first[: len(first) // 2]))[:4] == ["q0", "q1", "q2", "q3"], "items in their own order"


def test_scores_on_disk_are_the_engines(tmp_path, bench, spec):
    made = bench()
    run = run_study(spec, tmp_path / "r", prepare=made.prepare)
    item = made.prepare(spec.resolved(), lambda event: None).encoded[2]
    expected = made.engine.score([item], run.manifest.plan.coalitions)[0]
    rows = [r["loglikelihood"] for r in run.scores().to_pylist() if (r["task"], r["item"]) == (item.task, item.id)]
    assert np.array_equal(np.array(rows).reshape(expected.shape), expected)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, 3), max_size=4), error=st.sampled_from([KeyboardInterrupt, OSError, MemoryError]))
def test_stopping_anywhere_and_resuming_gives_the_same_bytes(tmp_path_factory, bench, engine, spec, stops, error):
    folder = tmp_path_factory.mktemp("stopped")
    whole = run_study(spec, tmp_path_factory.mktemp("whole") / "r", prepare=bench().prepare)
    for stop in stops:
        failing = bench(engine=engine(fail_at=stop, error=error))
        try:
            run_study(spec, folder / "r", prepare=failing.prepare)
        except error:
            assert open_run(folder / "r").manifest.status == ("interrupted" if error is KeyboardInterrupt else "failed")
    run = run_study(spec, folder / "r", prepare=bench().prepare)
    assert run.manifest.status == "done"
    assert digests(folder / "r") == digests(whole.folder)
    assert run.scores().equals(whole.scores())


def test_finished_tiles_are_not_scored_again(tmp_path, bench, engine, spec):
    first = bench(engine=engine(fail_at=2))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=first.prepare)
    second = bench()
    run_study(spec, tmp_path / "r", prepare=second.prepare)
    assert len(first.engine.scored) == 2
    assert len(second.engine.scored) == 5 - 2


def test_the_first_calls_tile_plan_is_kept(tmp_path, bench, engine, spec):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    run = run_study(spec, tmp_path / "r", prepare=bench(engine=engine(tile_items=7)).prepare)
    assert digests(run.folder) == digests(run_study(spec, tmp_path / "w", prepare=bench().prepare).folder)


def test_a_complete_run_is_given_back_without_loading_a_model(tmp_path, bench, spec):
    whole = bench()
    first = run_study(spec, tmp_path / "r", prepare=whole.prepare)
    tasks = whole.prepare(spec.resolved(), lambda _: None).tasks

    def refuse(*_):
        raise AssertionError("a model was loaded")

    again = run_study(spec, tmp_path / "r", prepare=refuse, read=lambda _: tasks)
    assert again.scores().equals(first.scores())
    changed = [replace(tasks[0], source={"kind": "other"}), *tasks[1:]]
    with pytest.raises(AssertionError, match="loaded"):
        run_study(spec, tmp_path / "r", prepare=refuse, read=lambda _: changed)


def test_a_complete_run_is_shown_by_the_value_that_is_asked_for_now(tmp_path, bench, spec):
    whole = bench()
    first = run_study(spec, tmp_path / "r", prepare=whole.prepare)
    tasks, before = whole.prepare(spec.resolved(), lambda _: None).tasks, digests(first.folder)
    asked = replace(spec, value="margin")
    again = run_study(asked, tmp_path / "r", prepare=whole.prepare, read=lambda _: tasks)
    assert again.findings.sides[-1].value == "margin"
    assert open_run(tmp_path / "r").findings.sides[-1].value == "margin", "the report says the same"
    assert open_run(tmp_path / "r").manifest.passed == asked
    back = run_study(spec, tmp_path / "r", prepare=whole.prepare, read=lambda _: tasks)
    assert back.findings.sides[-1].value == first.findings.sides[-1].value
    assert digests(tmp_path / "r") == before


def test_an_unfinished_run_loads_its_model(tmp_path, bench, engine, spec):
    made = bench(engine=engine(fail_at=2))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=made.prepare)
    second = bench()
    tasks = made.prepare(spec.resolved(), lambda _: None).tasks
    run_study(spec, tmp_path / "r", prepare=second.prepare, read=lambda _: tasks)
    assert second.calls == 1


def test_changed_code_is_announced_on_resuming(tmp_path, bench, engine, spec, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    monkeypatch.setattr("lowmem_layers.study.run.code_digest", lambda: "other")
    heard = []
    run_study(spec, tmp_path / "r", prepare=bench().prepare, announce=heard.append)
    assert any("code has changed" in note for note in notes(heard))


def test_what_decides_when_to_stop_cannot_change_on_the_way(tmp_path, bench, spec):
    early = replace(spec, until="top=1")
    run_study(early, tmp_path / "r", prepare=bench().prepare)
    with pytest.raises(RecordError, match="value"):
        run_study(replace(early, value="loglikelihood"), tmp_path / "r", prepare=bench().prepare)


def test_half_written_files_of_a_killed_process_are_removed(tmp_path, bench, engine, spec):
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    half = tmp_path / "r" / "scores" / "tile-00002.parquet.partial"
    half.write_bytes(b"PAR1 and then the lights went out")
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    assert not half.exists()


def test_a_kill_between_making_the_folder_and_run_json_is_a_fresh_start(tmp_path, bench, spec):
    (tmp_path / "r" / "scores").mkdir(parents=True)
    (tmp_path / "r" / "items.parquet.partial").write_bytes(b"half")
    assert run_study(spec, tmp_path / "r", prepare=bench().prepare).manifest.status == "done"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"max_removed": 1}, "max_removed"),
        ({"quant": "4bit"}, "quant"),
        ({"tasks": ("one",)}, "tasks"),
        ({"limit": 3}, "limit"),
        ({"seed": 7}, "seed"),
        ({"bos": "always"}, "bos"),
    ],
)
def test_a_folder_of_another_spec_is_refused_before_anything_is_loaded(tmp_path, bench, spec, other, named):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    before, second = digests(tmp_path / "r"), bench()
    with pytest.raises(RecordError, match=f"what differs: {named}"):
        run_study(replace(spec, **other), tmp_path / "r", prepare=second.prepare)
    assert second.calls == 0
    assert digests(tmp_path / "r") == before


def test_a_folder_of_another_model_or_other_data_is_refused(tmp_path, bench, spec):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    with pytest.raises(RecordError, match=r"model dtype \(float32 there, bfloat16 now\)"):
        run_study(spec, tmp_path / "r", prepare=bench(model={"id": "tiny", "dtype": "bfloat16"}).prepare)
    with pytest.raises(RecordError, match="data of one: items"):
        run_study(spec, tmp_path / "r", prepare=bench(n_items=6).prepare)
    with pytest.raises(RecordError, match="threads"):
        run_study(replace(spec, threads=5), tmp_path / "r", prepare=bench().prepare)


def test_where_weights_live_and_how_many_cores_there_are_does_not_matter(tmp_path, bench, spec):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    model = {"id": "tiny", "dtype": "float32", "home": "disk", "expected_cpu_bytes": 630_706_816}
    moved = bench(model=model, threads=64)
    run = run_study(replace(spec, offload="disk", max_cpu_memory=10**9), tmp_path / "r", prepare=moved.prepare)
    assert run.manifest.machine.threads == 2, "the first call's threads are taken again"


def test_where_memory_ran_out_is_announced_once_and_kept_in_the_record(tmp_path, bench, engine, spec):
    short = {"task": "one", "first_item": "q0", "chunk_tokens": 512, "head_rows": 256}
    heard = []
    failing = bench(engine=engine(fail_at=2, narrowed=[short]))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=failing.prepare, announce=heard.append)
    assert notes(heard) == [
        "out of memory in the tile of one q0: computed again in chunks of 512 tokens and 256 rows of logits, "
        "as are all tiles after it; the last bits of their numbers may differ"
    ]
    again = {**short, "first_item": "q5"}
    run_study(spec, tmp_path / "r", prepare=bench(engine=engine(narrowed=[again])).prepare)
    assert [dict(each) for each in open_run(tmp_path / "r").manifest.engine.narrowed] == [short, again]


def test_the_record_keeps_the_most_memory_of_all_calls(tmp_path, bench, engine, spec):
    first = bench(engine=engine(fail_at=2, memory={"host_peak_bytes": 300, "gpu_peak_bytes": 20, "gpu_retries": 0}))
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=first.prepare)
    second = engine(memory={"host_peak_bytes": 200, "gpu_peak_bytes": 30})
    run_study(spec, tmp_path / "r", prepare=bench(engine=second).prepare)
    assert open_run(tmp_path / "r").manifest.engine.memory == {
        "host_peak_bytes": 300, "gpu_peak_bytes": 30, "gpu_retries": 0
    }  # fmt: skip


def test_two_processes_do_not_write_one_run(tmp_path, bench, spec):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    with locked(tmp_path / "r"), pytest.raises(RecordError, match=rf"another process \(process {os.getpid()}\)"):
        run_study(spec, tmp_path / "r", prepare=bench().prepare)


@pytest.mark.parametrize("name", ["hf://x", "file:y", "with a space", "ü\n'\"#%?", "~", "-o", "C:\\runs", "x" * 200])
def test_a_run_may_lie_on_an_odd_path(tmp_path, bench, spec, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_study(spec, name, prepare=bench().prepare)
    assert run.folder == Path(name)
    scores = run.scores()
    assert open_run(name).scores().equals(scores)
    (tmp_path / "elsewhere").mkdir()
    moved = Path(name).rename(tmp_path / "elsewhere" / "moved")
    assert run_study(spec, moved, prepare=bench().prepare).scores().equals(scores), "a run may be moved"


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["d" * 200] * 30)])
def test_a_path_that_is_too_long_is_refused(tmp_path, bench, spec, name):
    with pytest.raises(RecordError, match=r"cannot use .*: File name too long"):
        run_study(spec, tmp_path / name, prepare=bench().prepare)
    with pytest.raises(RecordError, match=r"cannot read .*: File name too long"):
        open_run(tmp_path / name)


def test_an_abandoned_lock_is_no_lock(tmp_path, bench, spec):
    """A process that was killed leaves its name in the file, and no lock."""
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    (tmp_path / "r" / ".lock").write_text(f"{os.getppid()} {platform.node()}\n")
    assert run_study(spec, tmp_path / "r", prepare=bench().prepare).manifest.status == "done"


@pytest.mark.parametrize(
    ("holder", "refused"),
    [
        ("", ""),
        (f"{2**22 + 1} {platform.node()}", ""),
        (f"{os.getppid()} {platform.node()}", rf"\(process {os.getppid()}\)"),
        ("17 elsewhere", r"\(process 17 on elsewhere\)"),
        ("half-written \xff", ""),
    ],
)
def test_where_there_are_no_locks_the_name_in_the_file_counts(tmp_path, monkeypatch, holder, refused):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".lock").write_text(holder, encoding="latin-1")
    if refused:
        with pytest.raises(RecordError, match=refused), locked(tmp_path):
            pass
        return
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {platform.node()}\n"
    assert (tmp_path / ".lock").read_text() == ""


def test_foreign_folders_files_and_unwritable_places_are_refused(tmp_path, bench, spec):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("\\section{Introduction}")
    with pytest.raises(RecordError, match=r"it holds chapter\.tex and no run\.json"):
        run_study(spec, tmp_path / "thesis", prepare=bench().prepare)
    with pytest.raises(RecordError, match="is a file"):
        run_study(spec, tmp_path / "thesis" / "chapter.tex", prepare=bench().prepare)
    with pytest.raises(RecordError, match="cannot write"):
        run_study(spec, "/proc/runs/r", prepare=bench().prepare)


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no process's files")
def test_a_full_disk_is_one_clear_line_and_leaves_the_record_consistent(tmp_path, bench, engine, spec):
    """The system itself refuses to write on: files may have 300 bytes from the second tile on."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = bench()
    real = made.engine.score

    def score(items, coalitions, on_work=None):
        if len(made.engine.scored) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        return real(items, coalitions, on_work)

    made.engine.score = score
    try:
        with pytest.raises(RecordError, match=r"cannot write .*tile-00001.*(too large|No space)") as caught:
            run_study(spec, tmp_path / "r", prepare=made.prepare)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--out" in caught.value.hint
    assert not list((tmp_path / "r").rglob("*.partial"))
    assert open_run(tmp_path / "r").n_items_done == 3
    assert run_study(spec, tmp_path / "r", prepare=bench().prepare).manifest.status == "done"


def notes(heard):
    return [event.words for event in heard if isinstance(event, Noted)]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swap"])
def test_a_damaged_tile_is_named_and_made_again(tmp_path, bench, spec, damage):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    before, path = digests(run.folder), run.folder / "scores" / "tile-00001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 3] ^= 0xFF
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray((run.folder / "scores" / "tile-00000.parquet").read_bytes())
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"tile-00001\.parquet is damaged"):
        open_run(run.folder).scores()
    heard, second = [], bench()
    tasks = second.prepare(spec.resolved(), heard.append).tasks
    again = run_study(spec, run.folder, prepare=second.prepare, read=lambda _: tasks, announce=heard.append)
    assert len(second.engine.scored) == 1, "only the damaged tile"
    assert [note for note in notes(heard) if "tile-00001.parquet is damaged" in note and "3 items are scored" in note]
    assert len(notes(heard)) == 1
    assert digests(run.folder) == before
    assert again.scores().equals(open_run(run.folder).scores())


def test_a_damaged_tile_of_a_run_that_stopped_early_is_made_again(tmp_path, bench, spec):
    early = StudySpec(tasks=("one",), max_removed=1, until="ci=20", value="loglikelihood")
    run = run_study(early, tmp_path / "r", prepare=bench(n_items=90).prepare)
    before = digests(run.folder)
    assert run.manifest.stopped
    (run.folder / "scores" / "tile-00000.parquet").write_bytes(b"PAR1")
    again = run_study(early, tmp_path / "r", prepare=bench(n_items=90).prepare)
    assert (again.manifest.stopped, digests(run.folder)) == (run.manifest.stopped, before)


def test_no_flipped_bit_changes_what_is_read(tmp_path, bench, spec):
    """Pages, their headers and the footer of both kinds of file: found, or without any effect."""
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    rng, found = random.Random(0), Counter()
    for path in (run.folder / "scores" / "tile-00001.parquet", run.folder / "items.parquet"):
        whole = path.read_bytes()
        before = run.scores(), run.items()
        for place in rng.sample(range(8 * len(whole)), 100):
            flipped = bytearray(whole)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            try:
                opened = open_run(run.folder)
                assert (opened.scores(), opened.items()) == before
                found["harmless"] += 1
            except DamagedError:
                found["found"] += 1
        path.write_bytes(whole)
    assert found["found"] > found["harmless"]


@pytest.mark.parametrize("stop", [8, 20, 31])
def test_a_run_that_may_stop_early_stops_at_the_same_tile_when_it_was_interrupted(tmp_path, bench, engine, stop):
    early = StudySpec(tasks=("one",), max_removed=1, until="ci=1.6", value="loglikelihood")
    whole = run_study(early, tmp_path / "whole", prepare=bench(n_items=240).prepare)
    assert 31 < len(digests(whole.folder)) < 80
    for fail_at in (stop, 1):
        with pytest.raises(KeyboardInterrupt):
            run_study(early, tmp_path / "r", prepare=bench(engine=engine(fail_at=fail_at), n_items=240).prepare)
    again = run_study(early, tmp_path / "r", prepare=bench(n_items=240).prepare)
    assert (again.manifest.stopped, digests(again.folder)) == (whole.manifest.stopped, digests(whole.folder))


def test_looks_grow_apart_as_items_do():
    """Taken one by one, items are looked at each time at first, then whenever they have grown by one part in 100."""
    looks = [after for after in range(1, 50_001) if is_look(after - 1, after, 50_000)]
    assert looks[:100] == list(range(1, 101))
    assert len(looks) < 800
    assert max(b / a for a, b in pairwise(looks[100:])) < 1.021


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_damaged_items_are_written_anew(tmp_path, bench, spec, damage):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    before, path = digests(run.folder), run.folder / "items.parquet"
    if damage == "other":
        write_table(path, items_table(rows_of([make_item("one", index, 2) for index in range(15)])))
    else:
        path.write_bytes(path.read_bytes()[:100])
    heard: list = []
    made = bench()
    tasks = made.prepare(spec.resolved(), heard.append).tasks
    run_study(spec, tmp_path / "r", prepare=made.prepare, read=lambda _: tasks, announce=heard.append)
    assert digests(run.folder) == before
    assert any("items.parquet" in note and "written anew" in note for note in notes(heard))


def test_no_note_is_lost_on_a_display_that_is_gone(tmp_path, bench, spec):
    """A closed terminal (EIO) or a pipe whose reader has left stops no run."""

    def gone(event):
        raise OSError(5, "Input/output error")

    assert run_study(spec, tmp_path / "r", prepare=bench().prepare, announce=gone).manifest.status == "done"


def test_a_clock_that_jumps_back_costs_nothing(tmp_path, bench, spec):
    times = iter(range(1000, 0, -1))
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare, clock=lambda: next(times))
    assert open_run(run.folder).manifest.elapsed_s == 0.0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', "\udcff"])
def test_a_damaged_run_json_is_named(tmp_path, bench, spec, content):
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    (run.folder / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordError, match=r"run\.json"):
        open_run(run.folder)


def test_no_run_here(tmp_path):
    with pytest.raises(RecordError, match="not a run folder"):
        open_run(tmp_path / "nowhere")


def test_non_finite_scores_are_recorded_as_such(tmp_path, bench, engine, spec):
    poisoned = engine(poison={"q1": float("nan"), "q2": float("-inf")})
    run = run_study(spec, tmp_path / "r", prepare=bench(engine=poisoned).prepare)
    found = {r["item"]: r["loglikelihood"] for r in run.scores().to_pylist() if not np.isfinite(r["loglikelihood"])}
    assert np.isnan(found["q1"])
    assert found["q2"] == -np.inf
    assert run.scores()["loglikelihood"].null_count == 0


def test_bad_shapes_from_an_engine_are_refused(tmp_path, bench, engine, spec, monkeypatch):
    made = bench()
    monkeypatch.setattr(made.engine, "_block", lambda item, coalitions: np.zeros((2, 2)))
    with pytest.raises(Exception, match=r"expected scores of shape \(12, 2\), received \(2, 2\)"):
        run_study(spec, tmp_path / "r", prepare=made.prepare)


def test_more_removed_than_there_are_sublayers(tmp_path, bench, spec):
    with pytest.raises(UsageError, match="--max-removed 7 is more than the model's 6 sublayers"):
        run_study(replace(spec, max_removed=7), tmp_path / "r", prepare=bench().prepare)
    assert not (tmp_path / "r").exists()


def test_events_account_for_all_the_work(tmp_path, bench, engine, spec):
    seen: list = []
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, tmp_path / "r", prepare=bench(engine=engine(fail_at=2)).prepare)
    run_study(spec, tmp_path / "r", prepare=bench().prepare, announce=seen.append)
    planned = next(event for event in seen if isinstance(event, RunPlanned))
    committed = [event for event in seen if isinstance(event, TileCommitted)]
    assert (planned.n_tiles, planned.tiles_done, planned.items_done) == (5, 2, 6)
    assert planned.work_done + sum(e.work for e in seen if isinstance(e, WorkDone)) == planned.work_total
    assert [event.items_done for event in committed] == [9, 12, 15]
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].status == "done"
    assert any(isinstance(event, StageStarted) for event in seen)


def test_run_json_says_what_was_passed_and_what_it_became(tmp_path, bench, spec):
    run_study(spec, tmp_path / "r", prepare=bench().prepare)
    stored = json.loads((tmp_path / "r" / "run.json").read_text())
    assert stored["spec"]["passed"]["tasks"] == ["one", "three"]
    assert "quant" not in stored["spec"]["passed"]
    assert stored["spec"]["resolved"]["quant"] == "none"
    assert stored["model"]["id"] == "tiny"
    assert stored["seed"] == 0
    assert stored["versions"]["pyarrow"]
    assert [task["fingerprint"] for task in stored["data"]] != [None, None]
    assert stored["tiles"][0] == "0 2 4"
