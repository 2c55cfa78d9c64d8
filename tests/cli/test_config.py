"""Options from a file, what a shell completes, examples in help, and the traceback on demand."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import click
import pytest

from lowmem_layers.cli.app import app
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.cli.examples import EXAMPLES
from lowmem_layers.study import prepare

TOML = 'tasks = ["one", "three"]\nmax-removed = 1\nlimit = 5\nout = "from_file"\ndisplay = "none"\nno-cache = true\n'


@pytest.fixture
def small(bench, monkeypatch, tmp_path):
    made = bench()
    monkeypatch.setattr(prepare, "prepare_study", made.prepare)
    monkeypatch.setattr(prepare, "read_tasks", lambda spec: made.prepare(spec, lambda _: None).tasks)
    monkeypatch.setattr("lowmem_layers.report.write_report", lambda *_, **__: tmp_path / "page")
    monkeypatch.chdir(tmp_path)
    return made


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process."""
    status = run_command_line([str(argument) for argument in arguments])
    return (status, *capfd.readouterr())


def test_a_file_gives_options_and_the_command_line_wins(capfd, small, tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    assert call(capfd, "run", "--config", "run.toml", "--limit", "3") == (0, "from_file\n", "")
    passed = json.loads((tmp_path / "from_file" / "run.json").read_text())["spec"]["passed"]
    assert passed == {
        "tasks": ["one", "three"], "max_removed": 1, "limit": 3, "cache": False,
        "requantize": False, "trust_remote_code": False, "trust_task_code": False,
    }  # fmt: skip
    again = call(capfd, "run", "--config", "from_file/run.json", "--out", "second", "--display", "none", "--seed", "4")
    assert again[:2] == (0, "second\n")
    second = json.loads((tmp_path / "second" / "run.json").read_text())["spec"]["passed"]
    assert second == passed | {"seed": 4}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('quantt = "4bit"', "there is no option 'quantt'", "did you mean quant?"),
        ("[run]\nlimit = 3", "there is no option 'run'", "limit"),
        ("limit = 'many'", "many", "--help"),
        ("limit = true", "limit = true", "a text, a number or a list"),
        ("requantize = 'yes'", 'requantize = "yes"', "true or false"),
        ("quant = '5bit'", "--quant '5bit' is not known", "did you mean 4bit or 8bit?"),
        ("limit = ", "is no TOML", "tasks ="),
    ],
)
def test_a_file_with_a_mistake_is_refused(capfd, small, tmp_path, text, message, hint):
    (tmp_path / "run.toml").write_text(text)
    status, out, err = call(capfd, "run", "--config", "run.toml")
    assert (status, out) == (2, "")
    first, second = err.splitlines()[-2:]
    assert message in first
    assert hint in second


@pytest.mark.parametrize(("name", "text"), [("x.json", "[]"), ("x.json", "{"), ("missing.toml", None)])
def test_a_file_that_is_none_is_refused(capfd, small, tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    status, _, err = call(capfd, "run", "--config", name)
    assert status == 2
    assert "--config takes a TOML file or a run.json" in err


def test_one_file_serves_run_and_plan(small, tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    context = app.commands["plan"].make_context("plan", ["--config", "run.toml"])
    assert context.params["tasks"] == "one,three"


def commands(group: click.Group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_examples_are_commands_and_end_their_help():
    assert EXAMPLES.keys() <= {path[-1] for path, command in commands(app) if command.epilog}
    for path, command in commands(app):
        for line in EXAMPLES.get(path[-1], ()):
            words = shlex.split(line)
            assert words[: 1 + len(path)] == ["lowmem-layers", *path] or path == ("tasks",)
            rest = [word for word in words[1 + len(path) :] if not word.startswith(("my_", "runs/"))]
            command.make_context(path[-1], rest, resilient_parsing=True)


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef lowmem-layers"), ("fish", "complete --no-files --command")],
)
def test_each_shell_gets_its_completion(shell, words):
    done = subprocess.run(
        [sys.executable, "-c", "from lowmem_layers.cli import main; main()"],
        env={**os.environ, "_LOWMEM_LAYERS_COMPLETE": f"{shell}_source"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert words in done.stdout


@pytest.mark.parametrize(
    ("line", "begun", "found"),
    [
        ("", "pl", ["plan"]),
        ("run", "--quan", ["--quant"]),
        ("run --quant", "", ["none", "4bit", "8bit"]),
        ("run --offload", "d", ["disk"]),
        ("run --players", "GR", []),
    ],
)
def test_what_a_shell_completes(line, begun, found):
    from click.shell_completion import ShellComplete

    complete = ShellComplete(app, {}, "lowmem-layers", "_LOWMEM_LAYERS_COMPLETE")
    assert [item.value for item in complete.get_completions(line.split(), begun)] == found


def test_debug_shows_where_an_error_comes_from(capfd, tmp_path):
    for arguments in (("--debug", "scores", tmp_path), ("scores", tmp_path, "--debug")):
        status, _, err = call(capfd, *arguments)
        assert status == 2
        assert err.startswith("Traceback")
        assert err.splitlines()[-2].startswith("error: ")
    assert "Traceback" not in call(capfd, "scores", tmp_path)[2]
