"""`models` lists what is here; `models --cache` what was kept on disk, and clears it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.model import EMBEDDED_MODEL, ModelSpec, load_model
from lowmem_layers.model.checkpoint import texts
from lowmem_layers.model.checkpoint.source import Source
from tests.model.conftest import save_model, tiny_model, tiny_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with packed weights, converted texts, and a file left by a killed process; a hub's cache beside it."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_model(tmp_path / "model", "llama")
    load_model(ModelSpec(str(tmp_path / "model"), "4bit", "bfloat16", "cpu"))
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    texts.keep_texts(Source("some.gguf", tmp_path, "some.gguf"), tiny_model("llama").config, tiny_tokenizer(), print)
    (folder / "abc.packed.123.partial").write_bytes(b"x" * 10)
    kept = tmp_path / "hub" / "models--somebody--some-model" / "snapshots" / "1234"
    save_model(kept, "llama")
    (tmp_path / "hub" / "models--somebody--only-a-tokenizer" / "snapshots" / "1").mkdir(parents=True)
    return folder


def listed(capfd: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    capfd.readouterr()
    assert run_command_line(["models", *options, "--format", "json"]) == 0
    return json.loads(capfd.readouterr().out)


def test_models_that_are_here(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {row["model"]: row for row in listed(capfd)}
    assert set(rows) == {EMBEDDED_MODEL, "somebody/some-model", str(tmp_path / "model")}
    assert rows["somebody/some-model"]["where"] == "hub cache"
    assert rows[str(tmp_path / "model")]["where"] == "packed as nf4 bfloat16"


def test_what_was_kept(cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {row["format"]: row for row in listed(capfd, "--cache")}
    assert set(rows) == {"nf4 bfloat16", "config and tokenizer", ""}
    packed = rows["nf4 bfloat16"]
    assert (packed["model"], packed["state"]) == (str(tmp_path / "model"), "ready")
    assert packed["bytes"] == Path(packed["path"]).stat().st_size
    assert rows["config and tokenizer"]["model"] == "some.gguf"
    assert "partial" in rows[""]["state"]


def test_it_is_cleared(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert before > 0
    assert run_command_line(["models", "--cache", "--clear"]) == 0
    assert "freed" in capfd.readouterr().err
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert listed(capfd, "--cache") == []


def test_clear_alone_is_refused(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["models", "--clear"]) == 2
    assert "--clear goes with --cache" in capfd.readouterr().err
    assert list(cache.glob("*.packed"))


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "none"))
    assert listed(capfd, "--cache") == []
