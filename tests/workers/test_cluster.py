"""Runs on real Ray from outside: signals end everything that was started; a cluster of two hosts, one of which goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.study.events import Noted, TileCommitted
from lowmem_layers.workers.hiring import hired
from tests.dictionary import Bench, DictionaryEngine
from tests.workers.test_handing import digests

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SPEC = StudySpec(tasks=("one", "three"), max_removed=2, threads=1)

# The command itself; only what a worker does and the tasks are stand-ins, which wait for every tile.
COMMAND = """
from benchmarks.workers import Waiting
from lowmem_layers.study import prepare
from lowmem_layers.workers import hiring
real, study = hiring.hired, Waiting(400, tile_s=0.2)
prepare.read_tasks = study.tasks
hiring.hired = lambda *given, **named: real(*given, **{**named, "prepare": study.prepare, "read": study.tasks})
from lowmem_layers.cli import main
main()
"""


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        *((name, "TileCommitted") for name in ("SIGINT", "SIGTERM", "SIGHUP")),
        ("SIGTERM", "starting Ray"),  # Ray has an answer of its own to this signal
        ("SIGINT", "starting 2 workers"),
    ],
)
def test_a_signal_ends_the_run_and_all_that_it_started(tmp_path, name, moment):
    """Ctrl-C reaches every process of the terminal's group, as here; a scheduler's signal the command alone."""
    psutil, _ = pytest.importorskip("psutil"), pytest.importorskip("ray")
    options = ["run", "--workers", "2", "--threads", "1", "--display", "json", "--out", str(tmp_path / "r")]
    command = [sys.executable, "-c", COMMAND, *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stderr is not None
    started, said = [], []
    for line in process.stderr:
        if not line.startswith("{"):
            said.append(line.partition(":")[0])
            continue
        event = json.loads(line)
        if moment in (event["event"], event.get("stage")) and not started:
            time.sleep(1.0)  # it is at work
            started = psutil.Process(process.pid).children(recursive=True)
            number = getattr(signal, name)
            os.killpg(process.pid, number) if name == "SIGINT" else os.kill(process.pid, number)
    assert process.wait() == 130
    assert said == ["note", "hint"]
    assert started, "Ray's own processes, and the workers"
    psutil.wait_procs(started, timeout=10)
    assert [each for each in started if each.is_running() and each.status() != "zombie"] == []


@pytest.fixture
def cluster():
    """Start two hosts' worth of Ray on this machine, one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = made.add_node(num_cpus=1)
    yield made, second
    made.shutdown()


def noting(folder: str, tile_s: float, spec, announce, earlier):
    """Prepare a stand-in that leaves the name of the host on which it scores a tile."""
    import ray

    made = Bench(engine=DictionaryEngine(tile_items=1))
    score = made.engine.score

    def scored(items, coalitions, on_work=None):
        (Path(folder) / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(tile_s)
        return score(items, coalitions, on_work)

    made.engine.score = scored
    return made.prepare(spec, announce, earlier)


def test_two_hosts_make_the_record_of_one_process_also_when_one_goes(tmp_path, cluster):
    import ray

    made, second = cluster
    for module in ("tests.dictionary", __name__):
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    whole = run_study(SPEC, tmp_path / "whole", prepare=Bench(engine=DictionaryEngine(tile_items=1)).prepare)
    (tmp_path / "hosts").mkdir()
    prepare_there = partial(noting, str(tmp_path / "hosts"), 0.3)
    with hired(None, made.address, prepare=prepare_there) as prepare:  # one worker a host
        run = run_study(SPEC, tmp_path / "r", prepare=prepare)
    assert digests(run.folder) == digests(whole.folder)
    assert len(list((tmp_path / "hosts").iterdir())) == 2

    events: list[object] = []

    def hear(event: object) -> None:
        events.append(event)
        if sum(isinstance(each, TileCommitted) for each in events) == 2 and isinstance(event, TileCommitted):
            made.remove_node(second, allow_graceful=False)

    with hired(2, made.address, prepare=prepare_there) as prepare:
        run = run_study(SPEC, tmp_path / "half", prepare=prepare, announce=hear)
        assert digests(run.folder) == digests(whole.folder)
        assert any("goes to another worker" in event.words for event in events if isinstance(event, Noted))
