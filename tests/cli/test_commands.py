"""Commands: data on stdout, all else on stderr; errors are two lines and a status."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from lowmem_layers.cli.display.lines import JsonDisplay
from lowmem_layers.cli.entry import as_interrupts, run_command_line
from lowmem_layers.cli.output import json_line
from lowmem_layers.study import prepare
from lowmem_layers.study.events import Noted

COMMANDS = [
    "run",
    "plan",
    "importance",
    "scores",
    "report",
    "compare",
    "interactions",
    "tables",
    "prune",
    "bits",
    "proxies",
    "power",
    "items",
    "models",
    "tasks",
    "doctor",
]


def call(capfd, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process."""
    status = run_command_line([str(argument) for argument in arguments])
    return (status, *capfd.readouterr())


@pytest.fixture
def small(bench, monkeypatch):
    """Put a dictionary in the engine's place."""
    made = bench()
    monkeypatch.setattr(prepare, "prepare_study", made.prepare)
    monkeypatch.setattr(prepare, "read_tasks", lambda spec: made.prepare(spec, lambda _: None).tasks)
    return made


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["tasks", "show"]])
def test_help_everywhere(capfd, command):
    status, out, err = call(capfd, *command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith("Usage: lowmem-layers")


def test_each_command_has_its_whole_summary_in_the_list(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for group, commands in ((["--help"], COMMANDS), (["tasks", "--help"], ["show"])):
        _, out, _ = call(capfd, *group)
        lines = [line.split(None, 1) for line in out.rsplit("Commands:\n", 1)[1].split("\n\n")[0].splitlines()]
        assert [name for name, _ in lines] == commands
        assert all(summary.endswith(".") and not summary.endswith("...") for _, summary in lines)


@pytest.mark.parametrize(("command", "last"), [("run", "--out"), ("plan", "--format")])
def test_the_options_of_a_study_are_in_groups(capfd, monkeypatch, command, last):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(capfd, command, "--help")
    headings = re.findall(r"^(\S.*):$", out, re.MULTILINE)
    assert headings == ["Model", "Task", "What is removed and estimated", "Memory and device", "Output"]
    parts = dict(zip(headings, re.split(r"^\S.*:$", out, flags=re.MULTILINE)[1:], strict=True))
    for heading, option in zip(headings, ("--quant", "--limit", "--until", "--offload", last), strict=True):
        assert f"  {option} " in parts[heading]
    assert max(map(len, out.splitlines())) <= 80


def test_help_names_what_the_specification_takes(capfd):
    from lowmem_layers.findings.comparing import CORRECTIONS
    from lowmem_layers.findings.importance import ESTIMATORS
    from lowmem_layers.record import spec
    from lowmem_layers.tasks.metrics import VALUES

    _, out, _ = call(capfd, "run", "--help")
    text = " ".join(out.split())
    for option, allowed in (
        ("--quant", spec.QUANTISATIONS), ("--dtype", spec.DTYPES), ("--bos", spec.BOS), ("--device", spec.DEVICES),
        ("--coalitions", spec.COALITIONS), ("--offload", spec.OFFLOADS), ("--players", (*spec.PLAYERS, "GROUPS")),
    ):  # fmt: skip
        assert f"{option} {'|'.join(allowed)} " in text
    assert ", ".join(VALUES[:-1]) + f" or {VALUES[-1]}" in text
    usual = spec.StudySpec().resolved()
    for value in (usual.model, usual.max_removed, usual.window, usual.stride, usual.quant, *(usual.tasks or ())):
        assert f"{value}]" in text
    _, out, _ = call(capfd, "compare", "--help")
    text = " ".join(out.split())
    assert ", ".join(ESTIMATORS[:-1]) + f" or {ESTIMATORS[-1]}" in text
    assert f"--correction {'|'.join(CORRECTIONS)} " in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from lowmem_layers.cli.entry import run_command_line as r; r(['--help']); r(['run', '--help']);"
        "heavy = {'torch', 'transformers', 'pyarrow', 'matplotlib', 'datasets', 'bitsandbytes', 'numpy', 'rich'};"
        "heavy |= {'jinja2', 'scipy', 'psutil'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_reading_a_record_needs_no_torch(finished):
    code = (
        "import sys; from lowmem_layers.cli.entry import run_command_line as r;"
        f"r(['importance', {str(finished.folder)!r}]); import lowmem_layers.report;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_package_is_a_command_too():
    command = [sys.executable, "-m", "lowmem_layers", "scores", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: /nowhere is not a run folder")


def test_version(capfd):
    assert call(capfd, "--version")[1].startswith("lowmem-layers 0.")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rnu"], "there is no command 'rnu'; did you mean run?", "--help"),
        (["run", "--qant", "4bit"], "--qant", "run --help"),
        (["run", "--quant", "5bit"], "--quant '5bit' is not known", "4bit"),
        (["run", "--limit", "many"], "many", "--help"),
        (["run", "--limit", "0"], "--limit 0", "at least 1"),
        (["run", "--tasks", ","], "no task is named", "--tasks"),
        (["run", "--max-cpu-memory", "8 gigs"], "'8 gigs' is not a size", "8GiB"),
        (["run", "--max-gpu-memory", "9" * 400], "more bytes than 64 bits", "8GiB"),
        (["run", "--revision", "\udcff"], "an argument is no text: '\\udcff'", "UTF-8"),
        (["run", "--tasks", "x" * 300 + ".toml"], "File name too long", "another"),
        (["scores", "x" * 300], "File name too long", "run"),
        (["run", "--display", "fancy"], "--display 'fancy'", "auto, rich"),
        (["run", "--tasks", "quik"], "no task 'quik'", "quick"),
        (["run", "--value", "greedy"], "greedy asks whether a single continuation is the likeliest", "use acc"),
        (["run", "--change", "quantise"], "--change quantise names no format", "quantise:FORMAT; formats: nf4"),
        (["scores", "/nowhere"], "/nowhere is not a run folder", "run"),
        (["importance", "/nowhere", "--format", "cvs"], "--format 'cvs'", "did you mean csv?"),
        (["compare", "/nowhere"], "RUN_B", "--help"),
    ],
)
def test_bad_usage_is_one_line_and_a_hint(capfd, monkeypatch, tmp_path, arguments, message, hint):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capfd, *arguments)
    assert (status, out) == (2, "")
    first, second = err.splitlines()[-2:]
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("hint: ")
    assert hint in second
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_control_characters_are_spelled_out_for_people(capfd, tmp_path, bench):
    from lowmem_layers import StudySpec, run_study

    _, _, err = call(capfd, "scores", "/no\x1b[31mwhere")
    assert "/no\\x1b[31mwhere is not a run folder" in err
    spec = StudySpec(tasks=("a\x1b[31mb\u202e",), max_removed=1)
    run = run_study(spec, tmp_path / "r", prepare=bench().prepare)
    for form in ("table", "markdown", "latex"):
        _, out, _ = call(capfd, "importance", run.folder, "--format", form)
        assert "x1b[31mb" in out
        assert "\x1b" not in out
    _, out, _ = call(capfd, "importance", run.folder, "--format", "csv")
    assert "a\x1b[31mb\u202e" in out, "programs get the name as it is"
    for words in (["compare", run.folder, run.folder], ["power", run.folder], ["items", run.folder]):
        _, out, err = call(capfd, *words)
        assert "a\\x1b[31mb\\u202e" in err
        assert not {"\x1b", "\u202e"} & {*out, *err}


def test_scores_in_every_format(capfd, finished, tmp_path):
    rows = finished.scores().num_rows
    _, out, _ = call(capfd, "scores", finished.folder, "--format", "csv")
    read = list(csv.DictReader(io.StringIO(out)))
    assert len(read) == rows
    assert read[0].keys() == {"task", "item", "removed", "choice", "loglikelihood", "gold"}
    _, out, _ = call(capfd, "scores", finished.folder, "--format", "json")
    assert [row["loglikelihood"] for row in json.loads(out)] == finished.scores()["loglikelihood"].to_pylist()
    call(capfd, "scores", finished.folder, "-o", tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "s.parquet").equals(finished.scores())
    _, out, err = call(capfd, "scores", finished.folder)
    assert out.splitlines()[0].split()[:3] == ["task", "item", "removed"]
    assert "more rows" in err


@pytest.mark.parametrize(
    "command", [["importance"], ["interactions"], ["tables", "--table", "3"], ["power"], ["items"]]
)
def test_accuracies_of_a_model_at_chance_say_so_before_the_numbers(capfd, finished, command):
    _, out, err = call(capfd, *command, finished.folder)
    assert "not certainly above chance on one" in err.splitlines()[0]
    assert "chance" not in out
    if command[0] != "tables":
        _, _, err = call(capfd, *command, finished.folder, "--value", "loglikelihood")
        assert "above chance" not in err


def test_a_comparison_of_models_at_chance_says_so_of_both(capfd, finished):
    _, _, err = call(capfd, "compare", finished.folder, finished.folder)
    assert all("not certainly above chance on one" in line for line in err.splitlines()[:2])


def test_importance_by_another_value(capfd, finished):
    _, out, _ = call(capfd, "importance", finished.folder, "--value", "margin", "--format", "json")
    expected = finished.importance("margin")["value"].to_pylist()
    assert [row["value"] for row in json.loads(out)] == pytest.approx(expected)


def test_json_spells_what_it_does_not_know(capfd, tmp_path, bench, engine, spec_one):
    from lowmem_layers import run_study

    poisoned = bench(engine=engine(poison={"q1": float("nan"), "q2": -math.inf}))
    run = run_study(spec_one, tmp_path / "r", prepare=poisoned.prepare)
    _, out, _ = call(capfd, "scores", run.folder, "--format", "json")
    assert {"nan", "-inf"} <= {row["loglikelihood"] for row in json.loads(out)}


@pytest.fixture
def spec_one():
    """Study one task."""
    from lowmem_layers import StudySpec

    return StudySpec(tasks=("one",), max_removed=2)


def test_a_run_from_the_command_line(capfd, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")  # whatever terminal the tests are started from
    status, out, err = call(capfd, "run", "--tasks", "one", "--max-removed", "2", "--out", "r")
    assert status == 0
    for words in (
        "attn.0",
        "estimate",
        "drop",
        "share",
        "nats",
        "points",
        "run folder  r",
        "r/report/index.html",
        "top 3",
    ):
        assert words in out
    assert "r/report/index.html" in out
    assert (tmp_path / "r" / "report" / "index.html").is_file()
    assert "items × 12 coalitions of 6 players" in err
    assert max(map(len, out.splitlines())) <= 80
    status, out, _ = call(capfd, "run", "--tasks", "one", "--max-removed", "2", "--out", "r", "--display", "none")
    assert (status, out) == (0, "r\n")
    assert len(small.engine.scored) == 3, "the second command scored nothing"


def test_the_default_folder_is_named_after_the_options(capfd, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = call(capfd, "run", "--tasks", "one", "--max-removed", "1", "--display", "none", "--quant", "4bit")
    assert out.startswith("runs/smollm2-135m-instruct-4bit-one-")


def test_a_run_of_the_full_model_only(capfd, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(capfd, "run", "--tasks", "one", "--max-removed", "0", "--out", "r")
    assert status == 0
    assert "full model" in out


def test_json_events(capfd, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, err = call(capfd, "run", "--tasks", "one", "--max-removed", "1", "--out", "r", "--display", "json")
    events = [json.loads(line) for line in err.splitlines()]
    assert out == "r\n"
    assert [event["event"] for event in events][-2:] == ["TileCommitted", "RunFinished"]
    assert events[-1]["fraction"] == 1.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupted_run_says_how_to_resume(capfd, small, tmp_path, monkeypatch, number, times):
    monkeypatch.chdir(tmp_path)
    scored = small.engine._block
    # A shell's background job is started with SIGINT ignored, one under nohup with SIGHUP; the run would respect that.
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def slow(item, coalitions):
        if len(small.engine.scored) == 2:
            with contextlib.ExitStack() as stack:  # the others come while the first one is on its way
                for _ in range(times - 1):
                    stack.callback(os.kill, os.getpid(), number)
                os.kill(os.getpid(), number)
                time.sleep(5)
        return scored(item, coalitions)

    small.engine._block = slow
    with as_interrupts():
        status, _, err = call(capfd, "run", "--tasks", "one", "--max-removed", "1", "--out", "r", "--display", "none")
    assert status == 130
    assert err.splitlines()[-2] == "note: interrupted"
    assert "finished tiles are kept in r; to go on:" in err.splitlines()[-1]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "interrupted"
    del small.engine._block
    assert call(capfd, "run", "--tasks", "one", "--max-removed", "1", "--out", "r", "--display", "none")[0] == 0


def test_an_interrupt_during_the_imports_is_one_line():
    code = (
        "import os, signal, sys\n"
        "from lowmem_layers.cli import main\n"
        "class Kill:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'lowmem_layers.cli.results': os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Kill())\n"
        "main(['tasks'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "note: interrupted\n")


def test_a_closed_pipe_is_quiet(finished):
    command = [sys.executable, "-c", "from lowmem_layers.cli import main; main()", "scores", str(finished.folder)]
    process = subprocess.Popen([*command, "--format", "csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_compare_interactions_and_tables(capfd, finished):
    status, out, err = call(capfd, "compare", finished.folder, finished.folder, "--format", "json")
    assert status == 0
    assert {row["difference"] for row in json.loads(out)} == {0.0}
    assert "Kendall" in err
    _, out, _ = call(capfd, "interactions", finished.folder, "--format", "json")
    assert next((row["first"], row["second"]) for row in json.loads(out)) == ("attn.0", "ffn.0")
    for number in (1, 2, 3, 4):
        status, out, _ = call(capfd, "tables", finished.folder, "--table", number, "--format", "json")
        assert status == 0
        assert json.loads(out)


def test_tasks_and_models(capfd):
    status, out, _ = call(capfd, "tasks", "--format", "json")
    assert status == 0
    assert {"quick", "boolq", "arc_easy"} <= {row["task"] for row in json.loads(out)}
    _, out, _ = call(capfd, "tasks", "show", "quick", "--items", "2")
    assert out.count("(gold)") == 2
    assert out.count("⟦") == out.count("⟧") == 8  # stdout is no terminal: the scored part is marked all the same
    status, out, _ = call(capfd, "models", "--format", "json")
    assert json.loads(out)[0]["model"] == "SmolLM2-135M-Instruct"


def test_a_plan_of_a_shipped_shape(capfd, finished):
    pytest.importorskip("gguf")
    from lowmem_layers.model.checkpoint.embedded import find_embedded_model

    if find_embedded_model() is None:
        pytest.skip("the embedded model, whose tokenizer counts, is not installed")
    arguments = ("--model", "llama-3-8b", "--quant", "4bit", "--limit", "3", "--for", "rtx-4090", "--format", "json")
    status, out, err = call(capfd, "plan", *arguments, "--pilot", finished.folder, "--size", "0.5")
    found = {row["what"]: row["value"] for row in json.loads(out)}
    assert status == 0
    assert "for the median sublayer" in found["items for an effect of 0.5 on one (ablation)"]
    assert found["in all, with so many for the median"]
    assert found["sublayers"] == "64"
    assert found["coalitions"] == "251"
    assert found["sublayer applications"].startswith("7,754 ")
    assert found["items"] == "3"
    assert "data sheet" in err


def test_json_holds_no_sign_that_a_terminal_obeys():
    """Data keep their letters; controls, and marks that turn the direction of writing, are escaped."""
    record = {"ü\x9b": "a\x9b2J\u202eb\x7f\x1b[31mé"}
    line = json_line(record)
    assert json.loads(line) == record
    assert line.isprintable()
    assert "é" in line
    stream = io.StringIO()
    JsonDisplay(stream, lambda: 0.0)(Noted("\x9b2J \u202e é"))
    assert stream.getvalue().isascii()
