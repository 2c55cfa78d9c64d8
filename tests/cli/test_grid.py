"""Several runs from one file: which they are, one after another, and what is said where one fails."""

from __future__ import annotations

import json

import pytest

from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.errors import ModelError
from lowmem_layers.study import prepare

GRID = """
limit = 3
display = "none"
[grid]
quant = ["4bit", "8bit"]
tasks = ["one", ["one", "three"]]
[[runs]]
max-removed = 1
no-cache = true
"""


@pytest.fixture
def small(bench, monkeypatch, tmp_path):
    """Put a dictionary in the engine's place, that has no model called missing and cannot compute in 8 bits."""
    made = bench()

    def prepared(spec, announce, earlier=None, *, measure=None):
        if spec.model == "missing":
            raise ModelError("there is no model missing", "copy it here")
        if spec.model == "broken":
            raise ValueError("a fault of ours")
        if spec.model == "stopped":
            raise KeyboardInterrupt
        return made.prepare(spec, announce, earlier)

    monkeypatch.setattr(prepare, "prepare_study", prepared)
    monkeypatch.setattr(prepare, "read_tasks", lambda spec: made.prepare(spec, lambda _: None).tasks)
    monkeypatch.setattr("lowmem_layers.report.write_report", lambda *_, **__: tmp_path / "page")
    monkeypatch.setattr("lowmem_layers.findings.run.compute_findings", lambda run: None)
    monkeypatch.setattr("lowmem_layers.cli.summary.summarise", lambda *_, **__: None)
    made.freed = []
    monkeypatch.setattr("lowmem_layers.model.memory.release_model", lambda: made.freed.append(made.calls))
    monkeypatch.chdir(tmp_path)
    return made


def call(capfd, *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process."""
    status = run_command_line(list(arguments))
    return (status, *capfd.readouterr())


def test_every_combination_and_every_listed_run_is_made_and_nothing_twice(capfd, small, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    status, out, err = call(capfd, "run", "--config", "grid.toml", "--out", "here", "--seed", "5")
    assert (status, err) == (0, "")
    folders = out.split()
    assert len(set(folders)) == 5
    passed = [json.loads((tmp_path / folder / "run.json").read_text())["spec"]["passed"] for folder in folders]
    assert [(each.get("quant"), each.get("tasks"), each.get("max_removed")) for each in passed] == [
        ("4bit", ["one"], None),
        ("4bit", ["one", "three"], None),
        ("8bit", ["one"], None),
        ("8bit", ["one", "three"], None),
        (None, None, 1),
    ]
    assert {(each["limit"], each["seed"]) for each in passed} == {(3, 5)}
    assert [each["cache"] for each in passed] == [True] * 4 + [False]
    assert {folder.split("/")[0] for folder in folders} == {"here"}
    assert len(small.freed) == 4, "each model is freed before the next one is placed"
    calls = small.calls
    assert call(capfd, "run", "--config", "grid.toml", "--out", "here", "--seed", "5") == (0, out, "")
    assert small.calls == calls + 5, "complete runs read their tasks and load nothing"


def test_the_display_says_which_run_of_how_many(capfd, small, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID.replace("none", "plain"))
    status, _, err = call(capfd, "run", "--config", "grid.toml")
    assert status == 0
    assert "run 2 of 5 · SmolLM2-135M-Instruct · 4bit · one,three" in err
    assert err.count("] run ") == 5


def test_a_run_that_fails_does_not_lose_the_others(capfd, small, tmp_path):
    text = 'display = "none"\ntasks = "one"\n[grid]\nmodel = ["a", "missing", "broken", "b"]\n'
    (tmp_path / "grid.toml").write_text(text)
    status, out, err = call(capfd, "run", "--config", "grid.toml")
    lines = err.splitlines()
    assert status == 1
    assert [folder.split("-")[0] for folder in out.split()] == ["runs/a", "runs/b"]
    assert lines[0].startswith("error: run 2 of 4, runs/missing-")
    assert lines[0].endswith(": there is no model missing")
    assert lines[1] == "hint: copy it here"
    assert lines[2].endswith(": ValueError: a fault of ours")
    assert lines[4].startswith("error: 2 of 4 runs failed: runs/missing-")


def test_ctrl_c_ends_all_runs_and_says_how_to_go_on(capfd, small, tmp_path):
    (tmp_path / "grid.toml").write_text(
        'display = "none"\ntasks = "one"\n[[runs]]\nmodel = "a"\n[[runs]]\nmodel = "stopped"\n[[runs]]\nmodel = "b"\n'
    )
    status, out, err = call(capfd, "run", "--config", "grid.toml")
    assert status == 130
    assert len(out.split()) == 1
    assert "in run 2 of 3; complete runs and finished tiles are kept" in err


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("grid = 3", "grid is a table and runs a list of tables", "[[runs]]"),
        ("[[grid]]\nquant = ['4bit']", "grid is a table", "[grid]"),
        ("[runs]\nquant = '4bit'", "runs a list of tables", "[[runs]]"),
        ("[grid]", "lists no run", "[grid]"),
        ("runs = []", "lists no run", "[[runs]]"),
        ("[grid]\nquant = '4bit'", "[grid] quant is no list of values", 'quant = ["4bit", "8bit"]'),
        ("[grid]\nquant = []", "[grid] quant is no list of values", "[grid]"),
        ("[grid]\nquantt = ['4bit']", "there is no option 'quantt'", "did you mean quant?"),
        ("[grid]\nlimit = [1, 'many']", "run 2 of 2: Invalid value for '--limit'", ""),
        ("[grid]\nquant = ['4bit', '5bit']", "run 2 of 2: --quant '5bit' is not known", "4bit"),
        ("[grid]\nrequantize = ['yes']", 'requantize = "yes"', "true or false"),
        ("[[runs]]\nworkers = 2", "workers is for all runs together", "workers = … above [grid]"),
        ("[[runs]]\nout = 'x'", "out is for all runs together", "above"),
        ("[grid]\nseed = [1, 2]", "seed is given on the command line, too", "leave --seed out"),
        ("[grid]\nthreads = [1, 2]", "runs 1 and 2 have the same options, as far as they change numbers", "leave one"),
    ],
)
def test_a_list_with_a_mistake_is_refused_before_anything_is_run(capfd, small, tmp_path, text, message, hint):
    (tmp_path / "grid.toml").write_text(text)
    status, out, err = call(capfd, "run", "--config", "grid.toml", "--seed", "1", "--display", "none")
    assert (status, out, small.calls) == (2, "", 0)
    first, *rest = err.splitlines()
    assert message in first
    assert hint in "".join(rest)
    assert len(rest) <= 1
    assert not (tmp_path / "runs").exists()


def test_plan_takes_one_run(capfd, small, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    status, _, err = call(capfd, "plan", "--config", "grid.toml")
    assert status == 2
    assert "lists several runs" in err


def test_a_grid_runs_on_one_crew(capfd, small, tmp_path, monkeypatch):
    """The workers are hired once, whatever the number of runs."""
    import contextlib

    hired: list[tuple[int | None, str | None]] = []

    @contextlib.contextmanager
    def stand_in(n_workers, address=None, **_):
        hired.append((n_workers, address))
        yield prepare.prepare_study

    monkeypatch.setattr("lowmem_layers.workers.hiring.hired", stand_in)
    (tmp_path / "grid.toml").write_text("workers = 2\n" + GRID)
    status, out, _ = call(capfd, "run", "--config", "grid.toml")
    assert (status, len(out.split()), hired) == (0, 5, [(2, None)])
