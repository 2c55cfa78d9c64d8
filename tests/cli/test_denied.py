"""A file or folder that may not be read or written is named in one line with a hint, whatever it is for."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowmem_layers.cli.entry import run_command_line
from tests.model.conftest import save_model

TOML = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'
ITEM = {"q": "one", "options": [" two", " three"], "answer": 0}
BOOLQ = {"id": "b", "passage": "a b", "question": "is it", "answer": True}

_CAPABILITIES_VERSION = 0x20080522
_OPENS_EVERYTHING = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Capabilities:
    """This thread's capabilities, by the system's own calls (a superuser's chmod denies nothing)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
        self._sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
        assert self._library.capget(self._header, self._sets) == 0
        self._before = self._sets[0]

    def drop(self) -> None:
        self._sets[0] = self._before & ~_OPENS_EVERYTHING
        assert self._library.capset(self._header, self._sets) == 0

    def restore(self) -> None:
        self._sets[0] = self._before
        assert self._library.capset(self._header, self._sets) == 0


@pytest.fixture
def deny(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Give a function that takes all rights to a path away, or leaves those named, until the test ends."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the rights of a superuser are dropped by calls of Linux")
    capabilities = _Capabilities()
    changed: list[tuple[Path, int]] = []

    def change(path: Path, mode: int = 0) -> None:
        changed.append((path, path.stat().st_mode & 0o777))
        path.chmod(mode)

    capabilities.drop()
    try:
        yield change
    finally:
        capabilities.restore()
        for path, mode in reversed(changed):
            path.chmod(mode)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "llama")
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a task of each kind."""
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.toml").write_text(TOML)
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n")
    (tmp_path / "text.txt").write_text("some words here " * 20)
    for kind in ("lines", "rows", "out"):
        (tmp_path / kind).mkdir()
    (tmp_path / "lines" / "boolq.jsonl").write_text(json.dumps(BOOLQ) + "\n")
    pq.write_table(pa.Table.from_pylist([BOOLQ]), tmp_path / "rows" / "boolq.parquet")
    return tmp_path


def run(model: Path, *options: str, tasks: str = "task.toml", out: str = "out/run") -> list[str]:
    fixed = ["--max-removed", "0", "--device", "cpu", "--display", "none"]
    return ["run", "--model", str(model), "--tasks", tasks, "--out", out, *fixed, *options]


def expect_refused(capfd: pytest.CaptureFixture[str], command: list[str], named: Path | str) -> None:
    capfd.readouterr()
    status = run_command_line(command)
    lines = capfd.readouterr().err.splitlines()
    assert (status, len(lines)) == (2, 2), lines
    assert lines[0].startswith("error: ")
    assert str(named) in lines[0]
    assert "permission denied" in lines[0].lower() or "cannot write" in lines[0]
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("closed", "options"),
    [
        ("task.toml", ("task.toml",)),
        ("items.jsonl", ("task.toml",)),
        ("text.txt", ("text:text.txt",)),
        ("lines/boolq.jsonl", ("boolq", "--data-dir", "lines")),
        ("rows/boolq.parquet", ("boolq", "--data-dir", "rows")),
    ],
)
def test_tasks_and_data(closed: str, options: tuple[str, ...], place: Path, model: Path, deny, capfd) -> None:
    deny(place / closed)
    expect_refused(capfd, run(model, *options[1:], tasks=options[0]), closed)


@pytest.mark.parametrize("mode", [0, 0o400])
def test_a_folder_of_data(mode: int, place: Path, model: Path, deny, capfd) -> None:
    deny(place / "lines", mode)
    expect_refused(capfd, run(model, "--data-dir", "lines", tasks="boolq"), "lines/boolq.jsonl")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "."])
def test_a_models_files(name: str, place: Path, model: Path, deny, capfd) -> None:
    deny(model / name)
    expect_refused(capfd, run(model), model / name if name != "." else model)
    assert not list((place / "out").iterdir())


def test_a_gguf_file(place: Path, deny, capfd) -> None:
    (place / "x.gguf").write_bytes(b"GGUF")
    deny(place / "x.gguf")
    expect_refused(capfd, run(place / "x.gguf"), "x.gguf")


@pytest.mark.parametrize("mode", [0, 0o500])
def test_where_a_run_is_to_be_written(mode: int, place: Path, model: Path, deny, capfd) -> None:
    deny(place / "out", mode)
    expect_refused(capfd, run(model), "out")


def test_a_run_that_may_not_be_read(place: Path, model: Path, deny, capfd) -> None:
    assert run_command_line(run(model)) == 0
    tile = place / "out" / "run" / "scores" / "tile-00000.parquet"
    deny(tile)
    expect_refused(capfd, ["scores", "out/run"], "out/run/scores/tile-00000.parquet")
    deny(tile.parent)
    expect_refused(capfd, ["scores", "out/run"], "out/run/scores")
    expect_refused(capfd, run(model), "out/run/scores")


def test_kept_weights(place: Path, model: Path, deny, capfd) -> None:
    assert run_command_line(run(model, "--quant", "4bit")) == 0
    (kept,) = (place / "cache").glob("*.packed")
    deny(kept)
    expect_refused(capfd, run(model, "--quant", "4bit", out="out/again"), kept)
    assert run_command_line(["models", "--cache", "--format", "csv"]) == 0
    assert "cannot be read: Permission denied" in capfd.readouterr().out
    deny(place / "cache", 0o500)
    expect_refused(capfd, ["models", "--cache", "--clear"], kept)
    deny(place / "cache")
    expect_refused(capfd, ["models", "--cache"], place / "cache")
