"""Where the system lacks what Linux has, a run goes on all the same."""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import lowmem_layers
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.model.memory import peak_bytes
from lowmem_layers.record.spec import StudySpec, default_folder
from tests.model.conftest import save_model

PACKAGE = Path(lowmem_layers.__file__).parent
MODULES = ("resource", "fcntl", "pwd", "grp", "termios", "msvcrt", "winreg")  # of one system or another
CALLS = ("sysconf", "preadv", "pwritev", "posix_fadvise", "sched_getaffinity", "getloadavg", "O_NOFOLLOW", "geteuid")
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


def test_no_module_is_imported_at_once_that_a_system_lacks() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & set(MODULES), path


def test_a_run_where_linux_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """No /proc, resource, fcntl, preadv and so on, no SIGHUP: weights on disk in 4 bits, a lock, a result."""
    save_model(tmp_path / "model", "llama")
    (tmp_path / "items.jsonl").write_text('{"q": "the one", "options": [" a", " b"], "answer": 0}\n' * 2)
    (tmp_path / "task.toml").write_text(TASK)
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lowmem_layers.report.write_report", lambda *_, **__: Path("page"))
    monkeypatch.setattr("lowmem_layers.cli.summary.summarise", lambda *_, **__: None)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in CALLS:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    real = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith("/proc") and real(path))
    words = "run --model model --tasks task.toml --max-removed 1 --quant 4bit --offload disk --out r --device cpu"
    assert run_command_line([*words.split(), "--display", "plain"]) == 0
    assert peak_bytes() > 0
    assert run_command_line(["importance", "r", "--format", "csv"]) == 0
    assert capfd.readouterr().out.startswith("task,sublayer,estimator")
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [".lock", "items.parquet", "run.json", "scores"]


@pytest.mark.parametrize(
    "model", ["CON", "nul", "a:b", "a\\b", "COM1.txt", "..", "name.", "name ", "x" * 300, "org/CON", "A<b>|c?*", "ü\n"]
)
def test_the_usual_folder_is_one_that_windows_takes(model: str) -> None:
    """No reserved name, colon, backslash, dot or space at the end; names that differ by case have folders that differ
    where case is not told apart.
    """
    name = default_folder(StudySpec(model=model, tasks=("one",)).resolved()).name
    assert not set('<>:"/\\|?*\n') & set(name)
    assert name.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", *(f"COM{n}" for n in range(10))}
    assert name == name.rstrip(". ")
    assert len(name) < 200
    other = default_folder(StudySpec(model=model.swapcase(), tasks=("one",)).resolved()).name
    assert model == model.swapcase() or name.casefold() != other.casefold()
