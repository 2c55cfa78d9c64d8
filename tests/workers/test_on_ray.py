"""Workers as real Ray actors: the same record, killed or not; and what is said where Ray is not there."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from importlib.util import find_spec

import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.errors import EngineError, UsageError
from lowmem_layers.study.events import Noted, TileCommitted
from lowmem_layers.workers.hiring import hired
from tests.dictionary import Bench, DictionaryEngine
from tests.workers.test_handing import digests

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra ray)")
SPEC = StudySpec(tasks=("one", "three"), max_removed=2, threads=1)


def test_ray_missing_is_one_line_and_a_hint(capsys, monkeypatch):
    monkeypatch.setattr("lowmem_layers.workers.on_ray.find_spec", lambda name: None)
    assert run_command_line(["run", "--workers", "2"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: --workers and --ray need Ray, which is not installed",
        'hint: install it with: pip install "lowmem-layers[ray]"',
    ]


@needs_ray
@pytest.mark.parametrize(("words", "message"), [(["--workers", "0"], "too small"), (["--mix-devices"], "goes with")])
def test_options_that_make_no_sense_are_refused(capsys, words, message):
    assert run_command_line(["run", *words]) == 2
    assert message in capsys.readouterr().err


@needs_ray
def test_an_address_where_nothing_listens_is_one_line_and_a_hint(capsys):
    with socket.socket() as closed:  # bound, so that nobody else listens there; it does not listen itself
        closed.bind(("127.0.0.1", 0))
        assert run_command_line(["run", "--ray", f"127.0.0.1:{closed.getsockname()[1]}", "--display", "none"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["error", "hint"]
    assert "cannot be reached at 127.0.0.1" in said[0]


@pytest.fixture(scope="module")
def ray_here():
    """Start Ray once for this module; what it starts ends with it."""
    ray = pytest.importorskip("ray")
    from lowmem_layers.workers.on_ray import ray_open

    with ray_open(None, 2):
        ray.cloudpickle.register_pickle_by_value(sys.modules["tests.dictionary"])
        yield ray


def killing(marks: str, spec, announce, earlier):
    """Prepare a stand-in whose process kills itself in its first tile, once for each of two marks."""
    made = Bench(engine=DictionaryEngine())
    score = made.engine.score

    def scored(items, coalitions, on_work=None):
        for mark in ("a", "b"):
            try:
                os.close(os.open(f"{marks}/{mark}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
        return score(items, coalitions, on_work)

    made.engine.score = scored
    return made.prepare(spec, announce, earlier)


def failing(spec, announce, earlier):
    """Prepare a stand-in that fails in its second tile."""
    return Bench(engine=DictionaryEngine(fail_at=1, error=EngineError)).prepare(spec, announce, earlier)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_workers_on_ray_leave_the_record_of_one_process(tmp_path, ray_here):
    ray_here.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    whole = run_study(SPEC, tmp_path / "whole", prepare=Bench().prepare)
    events: list[object] = []
    (tmp_path / "marks").mkdir()
    with hired(2, prepare=partial(killing, str(tmp_path / "marks"))) as prepare:
        run = run_study(SPEC, tmp_path / "r", prepare=prepare, announce=events.append)
    assert len(list((tmp_path / "marks").iterdir())) == 2
    assert sum("goes to another worker" in event.words for event in events if isinstance(event, Noted)) >= 1
    assert sorted(e.tile for e in events if isinstance(e, TileCommitted)) == list(range(len(run.manifest.plan.tiles)))
    assert digests(run.folder) == digests(whole.folder)
    with (
        hired(2, prepare=failing) as prepare,
        pytest.raises(EngineError, match=r"worker \d: the machine was switched off"),
    ):
        run_study(SPEC, tmp_path / "f", prepare=prepare)
    with hired(9, prepare=failing) as prepare, pytest.raises(UsageError, match="9 workers of 1 CPUs each"):
        run_study(SPEC, tmp_path / "g", prepare=prepare)
