"""Tiles on several workers: the record of one process to the bit, whatever happens to workers, and in which order."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import EngineError, LowmemLayersError, ShortageError, UsageError, WorkerError
from lowmem_layers.study.events import Noted, StatementJudged, TileCommitted, TileStarted, WorkDone, ignore
from lowmem_layers.workers.crew import Crew
from lowmem_layers.workers.hiring import hired
from lowmem_layers.workers.worker import Place, Worker, versions_here
from tests.workers.stand_ins import ListHands

UNTIL = StudySpec(tasks=("one",), max_removed=1, until="ci=3")


def digests(folder: Path) -> dict[str, str]:
    """Hash every file of the record but for run.json, which has the time in it."""
    files = sorted([*folder.glob("scores/*"), folder / "items.parquet"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def crew_of(prepare, **options) -> tuple[ListHands, Crew]:
    hands = ListHands(prepare, **options)
    return hands, Crew(hands)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Give the record of one process."""
    from tests.dictionary import Bench

    spec = StudySpec(tasks=("one", "three"), max_removed=2)
    return run_study(spec, tmp_path_factory.mktemp("whole") / "r", prepare=Bench().prepare)


@pytest.mark.parametrize("n_workers", [1, 2, 8])
def test_the_record_is_that_of_one_process_whatever_the_number_of_workers(tmp_path, bench, spec, whole, n_workers):
    run = run_study(spec, tmp_path / "r", prepare=crew_of(bench().prepare, n_workers=n_workers)[1].prepare)
    assert digests(run.folder) == digests(whole.folder)
    assert replace(run.manifest, created="", elapsed_s=0.0) == replace(whole.manifest, created="", elapsed_s=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments_nothing_is_lost_and_nothing_comes_twice(tmp_path, bench, spec, whole, seed):
    rng, kills, committed = random.Random(seed), [], []

    def dies(worker: int, method: str) -> bool:
        is_over = len(kills) >= 5 or method not in ("score", "load", "news")
        if is_over or not begun or (kills and rng.random() > 0.5):  # the first one that can die does
            return False
        kills.append(method)
        return True

    begun: list[object] = []

    def hear(event: object) -> None:
        if isinstance(event, TileStarted):
            begun.append(event)
        elif isinstance(event, TileCommitted):
            committed.append(event.tile)

    crew = crew_of(bench().prepare, seed=seed, dies=dies)[1]
    run = run_study(spec, tmp_path / "r", prepare=crew.prepare, announce=hear)
    assert len(kills) >= 1, "no worker was killed"
    assert sorted(committed) == list(range(len(run.manifest.plan.tiles)))
    assert digests(run.folder) == digests(whole.folder)


def test_a_run_goes_on_with_more_workers_with_fewer_and_with_none(tmp_path, bench, engine, spec, whole):
    for n_workers in (2, 4):
        failing = bench(engine=engine(fail_at=1, error=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_study(spec, tmp_path / "r", prepare=crew_of(failing.prepare, n_workers=n_workers)[1].prepare)
    assert open_run(tmp_path / "r").manifest.status == "interrupted"
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    assert digests(run.folder) == digests(whole.folder)


def test_a_statement_is_judged_in_the_order_of_the_plan(tmp_path, bench, engine):
    """Workers that finish in any order stop where one process does, with the same record."""
    alone = run_study(UNTIL, tmp_path / "alone", prepare=bench(n_items=60).prepare)
    assert 1 < len(list(alone.folder.glob("scores/*"))) < len(alone.manifest.plan.tiles)
    for seed in range(4):
        judged: list[object] = []
        _, crew = crew_of(bench(n_items=60).prepare, n_workers=4, seed=seed)
        run = run_study(UNTIL, tmp_path / f"{seed}", prepare=crew.prepare, announce=judged.append)
        assert digests(run.folder) == digests(alone.folder)
        assert run.manifest.stopped == alone.manifest.stopped
        places = [event.tile for event in judged if isinstance(event, TileCommitted)]
        assert places == sorted(places)
        assert any(isinstance(event, StatementJudged) and event.holds for event in judged)


def test_a_worker_that_hangs_is_ended_and_its_tile_goes_to_another(tmp_path, bench, spec, whole):
    hands = ListHands(bench().prepare, n_workers=2)
    hands.hangs.add(1)
    noted: list[object] = []
    run = run_study(spec, tmp_path / "r", prepare=Crew(hands, patience_s=0.0).prepare, announce=noted.append)
    assert 1 in hands.restarted
    assert any("no progress" in event.words for event in noted if isinstance(event, Noted))
    assert digests(run.folder) == digests(whole.folder)


def test_a_worker_that_was_killed_while_it_was_idle_loads_again(tmp_path, bench, spec, whole):
    """Ray has started it anew, unseen: it answers the next call, but has no model."""
    hands, crew = crew_of(bench().prepare)
    noted: list[object] = []

    def hear(event: object) -> None:
        noted.append(event)
        if isinstance(event, TileCommitted) and event.tiles_done == 1:
            hands._workers[1] = Worker(hands.prepare)

    run = run_study(spec, tmp_path / "r", prepare=crew.prepare, announce=hear)
    assert digests(run.folder) == digests(whole.folder)
    assert any("began anew, without a model" in event.words for event in noted if isinstance(event, Noted))


def test_a_worker_whose_host_is_gone_does_not_keep_the_run_waiting(tmp_path, bench, spec):
    """The only worker ends, and Ray finds no host for it: the run ends with a line, and goes on with another call."""
    hands = ListHands(bench().prepare, n_workers=1, dies=lambda worker, method: method == "score", hanging="load")
    noted: list[object] = []

    def hear(event: object) -> None:
        noted.append(event)
        if isinstance(event, TileStarted):
            hands.hangs.add(0)

    with pytest.raises(WorkerError, match="no worker is left: worker 0 lost"):
        run_study(spec, tmp_path / "r", prepare=Crew(hands, patience_s=0.3).prepare, announce=hear)
    assert any("was not loaded again within" in event.words for event in noted if isinstance(event, Noted))


def test_memory_that_runs_out_sends_the_tile_to_another_worker(tmp_path, bench, engine, spec, whole):
    made = bench(engine=engine(fail_at=1, error=ShortageError))
    sound = bench()
    turn = iter([made, sound, sound])
    _hands, crew = crew_of(lambda *given: next(turn).prepare(*given))
    run = run_study(spec, tmp_path / "r", prepare=crew.prepare)
    assert digests(run.folder) == digests(whole.folder)


def test_an_error_in_a_worker_is_one_line_that_names_worker_and_tile(tmp_path, bench, engine, spec):
    for error, expected in ((ValueError, WorkerError), (EngineError, EngineError)):
        failing = bench(engine=engine(fail_at=1, error=error))
        with pytest.raises(expected) as caught:
            run_study(spec, tmp_path / expected.__name__, prepare=crew_of(failing.prepare)[1].prepare)
        assert caught.value.message.startswith("worker ")
        assert "the machine was switched off" in caught.value.message


def test_a_tile_that_ends_every_worker_ends_the_run(tmp_path, bench, spec):
    _, crew = crew_of(bench().prepare, dies=lambda worker, method: method == "score")
    with pytest.raises(WorkerError, match=r"tile \d failed 6 times"):
        run_study(spec, tmp_path / "r", prepare=crew.prepare)


def test_workers_that_cannot_load_again_are_given_up_one_after_another(tmp_path, bench, spec):
    begun: list[int] = []

    def dies(worker: int, method: str) -> bool:
        begun.append(worker) if method == "score" else None
        return method == "score" or (method == "load" and bool(begun))

    noted: list[object] = []
    with pytest.raises(WorkerError, match=r"no worker is left|failed 6 times"):
        run_study(spec, tmp_path / "r", prepare=crew_of(bench().prepare, dies=dies)[1].prepare, announce=noted.append)
    assert any("given up" in event.words for event in noted if isinstance(event, Noted))


def test_progress_within_tiles_adds_up_to_what_was_planned(tmp_path, bench, spec):
    events: list[object] = []
    run_study(spec, tmp_path / "r", prepare=crew_of(bench().prepare)[1].prepare, announce=events.append)
    reported = sum(event.work for event in events if isinstance(event, WorkDone))
    assert reported <= sum(event.work for event in events if isinstance(event, TileCommitted))
    assert {event.worker for event in events if isinstance(event, TileCommitted)} <= {
        "worker 0",
        "worker 1",
        "worker 2",
    }


def devices(bench, *models: dict[str, object]):
    """Prepare workers that say different things of their models."""
    turn = iter([bench(model={"id": "tiny", "dtype": "float32", **model}) for model in models])
    return lambda *given: next(turn).prepare(*given)


def test_devices_that_would_change_numbers_are_refused_unless_asked_for(tmp_path, bench, spec, whole):
    cards = [{"device": "cuda", "gpu": {"name": name, "capability": "8.9"}} for name in ("RTX 4090", "RTX 3060")]
    _hands, crew = crew_of(devices(bench, *cards), n_workers=2)
    with pytest.raises(UsageError, match=r"device .RTX 4090, capability 8.9 and RTX 3060") as caught:
        run_study(spec, tmp_path / "r", prepare=crew.prepare)
    assert "--mix-devices" in caught.value.hint
    assert not (tmp_path / "r").exists()

    import pyarrow.parquet as pq

    crew = Crew(ListHands(devices(bench, *cards), n_workers=2), mixed=True)
    run = run_study(spec, tmp_path / "r", prepare=crew.prepare)
    made = {pq.read_schema(path).metadata[b"made on"].decode() for path in run.folder.glob("scores/*")}
    assert made <= {"RTX 4090, capability 8.9", "RTX 3060, capability 8.9"}
    assert run.scores().equals(whole.scores())


def test_another_model_is_refused_though_devices_may_be_mixed(tmp_path, bench, spec):
    prepare = devices(bench, {"fingerprint": "a"}, {"fingerprint": "b"})
    with pytest.raises(UsageError, match=r"model fingerprint .a and b"):
        run_study(spec, tmp_path / "r", prepare=Crew(ListHands(prepare, n_workers=2), mixed=True).prepare)


def test_versions_that_differ_are_refused_by_name(tmp_path, bench, spec, monkeypatch):
    _, crew = crew_of(bench().prepare)
    here = {**versions_here(), "torch": "1.0"}
    monkeypatch.setattr("lowmem_layers.workers.crew.versions_here", lambda: here)
    with pytest.raises(UsageError, match=r"worker \d has other versions: torch 2\S* there, 1.0 here"):
        run_study(spec, tmp_path / "r", prepare=crew.prepare)


def test_a_worker_without_the_model_says_so(tmp_path, bench, spec):
    def absent(*given):
        raise LowmemLayersError("there is no folder models/x", "copy it to every host")

    with pytest.raises(LowmemLayersError) as caught:
        run_study(spec, tmp_path / "r", prepare=crew_of(absent)[1].prepare)
    assert str(caught.value).partition(": ")[2] == "there is no folder models/x"
    assert caught.value.hint == "copy it to every host"


def test_memory_that_was_given_is_shared_by_the_workers_of_a_host(tmp_path, bench, spec):
    given: list[int | None] = []

    def prepare(specification, announce, earlier):
        given.append(specification.max_cpu_memory)
        return bench().prepare(specification, announce, earlier)

    run_study(replace(spec, max_cpu_memory=900), tmp_path / "r", prepare=crew_of(prepare)[1].prepare)
    assert given == [300, 300, 300]


def test_workers_of_one_host_share_what_is_free_there(tmp_path, bench, spec, monkeypatch):
    """Two on a host of 900 bytes, one alone on another: nobody counts on what the other one takes."""
    shares: list[int | None] = []

    def prepare(specification, announce, earlier, *, tasks, free_cpu_memory):
        shares.append(free_cpu_memory)
        return bench().prepare(specification, announce, earlier)

    monkeypatch.setattr("lowmem_layers.study.prepare.prepare_study", prepare)
    where = [("desktop", 800), ("desktop", 900), ("laptop", 700)]
    places = iter([Place(host, versions_here(), free) for host, free in where])
    monkeypatch.setattr(Worker, "arrive", lambda self: next(places))
    hands = ListHands(None, n_workers=3)
    run_study(spec, tmp_path / "r", prepare=Crew(hands).prepare)
    assert sorted(shares) == [450, 450, 700]


def test_several_runs_share_one_crew_and_one_that_fails_leaves_nothing_behind(tmp_path, bench, engine, spec, whole):
    made = [bench(engine=engine(fail_at=1, error=EngineError)), bench()]
    now = iter([made[0]] * 3 + [made[1]] * 6)
    hands, crew = crew_of(lambda *given: next(now).prepare(*given))
    with pytest.raises(EngineError):
        run_study(spec, tmp_path / "failed", prepare=crew.prepare)
    assert not hands.restarted
    run = run_study(spec, tmp_path / "r", prepare=crew.prepare)
    assert set(hands.restarted) < {0, 1, 2}, "workers that still scored for the run that failed"
    assert hands.restarted
    assert digests(run.folder) == digests(whole.folder)


@pytest.mark.parametrize("gone_at", ["arrive", "load", "score"])
def test_a_worker_that_ended_for_good_is_left_out_of_the_next_runs(tmp_path, bench, spec, whole, gone_at):
    """Whether that is seen when the second run begins, while it loads, or in its tiles."""
    hands, crew = crew_of(bench().prepare)
    noted: list[object] = []
    ended: list[str] = []

    def dies(worker: int, method: str) -> bool:
        if worker == 2 and (method == gone_at or ended):
            ended.append(method)
        return worker == 2 and bool(ended)

    for number in range(4):
        n_calls = len(hands.calls)
        run = run_study(spec, tmp_path / f"{number}", prepare=crew.prepare, announce=noted.append)
        assert digests(run.folder) == digests(whole.folder)
        hands.dies = dies
    assert ended[0] == gone_at
    assert not [each for each in hands.calls[n_calls:] if each[0] == 2], "asked for once more"
    assert any(getattr(event, "words", "").startswith("worker 2") for event in noted)


def test_a_worker_gets_its_next_tile_before_the_last_one_is_recorded(bench, spec):
    """Between two tiles no worker waits until scores are written."""
    from lowmem_layers.study.contracts import Scoring
    from lowmem_layers.study.events import ignore

    _, crew = crew_of(bench().prepare, n_workers=2)
    prepared = crew.prepare(spec.resolved(), ignore)
    begun: list[int] = []
    of = Scoring([prepared.encoded[:1]] * 8, [()], begun.append, ignore)
    for given, _ in enumerate(prepared.score_tiles(range(8), of), start=1):
        assert len(begun) >= min(8, given + 2)


def test_scores_keep_every_bit(tmp_path, bench, engine, spec):
    """What is not finite, and the last bit, pass through a worker as they are."""
    poison = {"q1": float("-inf"), "q2": float("nan")}
    folders = []
    for name, prepare in (
        ("alone", bench(engine=engine(poison=poison)).prepare),
        ("crew", crew_of(bench(engine=engine(poison=poison)).prepare)[1].prepare),
    ):
        folders.append(run_study(spec, tmp_path / name, prepare=prepare))
    first, second = (np.array(run.scores()["loglikelihood"]) for run in folders)
    assert np.isneginf(first).any()
    assert first.tobytes() == second.tobytes()


def test_devices_that_ray_gives_to_nobody_are_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr("lowmem_layers.workers.hiring.library", lambda: None)
    monkeypatch.setattr("lowmem_layers.workers.hiring.ray_open", lambda *_: pytest.fail("Ray is started"))
    with hired(2) as prepare, pytest.raises(UsageError, match="--workers with --device mps"):
        prepare(StudySpec(device="mps").resolved(), ignore, None)
