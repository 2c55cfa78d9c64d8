"""The cache of packed weights: found again, never trusted blindly, listed and cleared."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.checkpoint.source import Source
from lowmem_layers.model.checkpoint.texts import keep_texts
from lowmem_layers.model.homes import filling, packed_file
from lowmem_layers.model.homes.cache import cache_folder, clear_cache, fingerprint_files, list_cache
from lowmem_layers.model.homes.packed_file import DiskFullError, OtherVersionError, PackedFileWriter
from tests.model.conftest import tiny_model, tiny_tokenizer
from tests.model.test_load import logits_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path))
    return tmp_path


def spec(model: Path, **changes: object) -> ModelSpec:
    return ModelSpec(str(model), "4bit", "bfloat16", "cpu", **changes)  # type: ignore[arg-type]


def test_the_second_start_reads_the_cache(llama_folder: Path, folder: Path) -> None:
    lines: list[str] = []
    first = load_model(spec(llama_folder), lines.append)
    assert len(list_cache()) == 1
    entry = list_cache()[0]
    assert (entry.model, entry.packing, entry.state) == (str(llama_folder), "nf4 bfloat16", "ready")
    second = load_model(spec(llama_folder), lines.append)
    assert "from the cache" in lines[-1]
    assert torch.equal(logits_of(first), logits_of(second))
    assert clear_cache() == entry.n_bytes
    assert list_cache() == []


def test_what_a_killed_process_left_is_deleted_once_it_is_old(llama_folder: Path, folder: Path) -> None:
    load_model(spec(llama_folder))
    path = list_cache()[0].path
    path.unlink()
    names = {"old": "999999999", "fresh": "999999998"}  # no process has these numbers
    partial = {what: path.with_name(f"{path.name}.{pid}.partial") for what, pid in names.items()}
    for file in partial.values():
        file.write_bytes(b"half")
    os.utime(partial["old"], (0, 0))
    load_model(spec(llama_folder))
    assert not partial["old"].exists()
    assert partial["fresh"].exists()  # another machine's, perhaps
    assert path.exists()


def test_weights_that_another_process_packs_are_waited_for_and_not_packed_again(
    llama_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_of(load_model(spec(llama_folder)))
    path = list_cache()[0].path
    aside = path.rename(path.with_name("aside"))  # as if it were still being written
    lock = FileLock(f"{path}.lock", thread_local=False)
    holder = threading.Thread(target=lock.acquire)  # another thread stands for another process
    holder.start()
    holder.join()

    def finish(line: str) -> None:
        lines.append(line)
        if "another process packs these weights" in line:
            aside.rename(path)
            threading.Timer(0.1, lock.release).start()

    lines: list[str] = []
    monkeypatch.setattr(filling, "_read_all", lambda *_: pytest.fail("packed twice"))
    assert torch.equal(logits_of(load_model(spec(llama_folder), finish)), expected)
    assert "from the cache" in lines[-1]
    assert [entry.state for entry in list_cache()] == ["ready"]


def test_where_there_are_no_locks_weights_are_packed_all_the_same(
    llama_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(self: FileLock, timeout: float | None = None) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    load_model(spec(llama_folder))
    assert list_cache()[0].state == "ready"


def test_no_cache_writes_nothing(llama_folder: Path, folder: Path) -> None:
    load_model(spec(llama_folder, cache=False))
    assert not list(folder.iterdir())


def test_a_damaged_cache_is_made_again(llama_folder: Path, folder: Path) -> None:
    expected = logits_of(load_model(spec(llama_folder)))
    path = list_cache()[0].path
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    lines: list[str] = []
    again = load_model(spec(llama_folder), lines.append)
    assert any("have changed since they were written; it is made again" in line for line in lines)
    assert torch.equal(logits_of(again), expected)
    path.write_bytes(content[:5000])
    assert "truncated" in list_cache()[0].state
    assert torch.equal(logits_of(load_model(spec(llama_folder))), expected)


def test_another_checkpoint_has_another_entry(llama_folder: Path, folder: Path, tmp_path: Path) -> None:
    files = sorted(llama_folder.glob("*.safetensors"))
    before = fingerprint_files(files)
    copy = tmp_path / files[0].name
    content = bytearray(files[0].read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert fingerprint_files([copy, *files[1:]]) != before
    assert fingerprint_files(files) == before


def test_a_full_disk_is_refused_and_nothing_is_left(
    llama_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: PackedFileWriter, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedFileWriter, "_write", full)
    for offload in ("auto", "disk"):
        with pytest.raises(DiskFullError, match="the disk is full") as caught:
            load_model(spec(llama_folder, offload=offload))
        assert "--no-cache" in caught.value.hint
        assert not list(folder.iterdir())
    assert torch.isfinite(logits_of(load_model(spec(llama_folder, cache=False)))).all()


def test_a_cache_of_another_version_is_refused(
    llama_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(spec(llama_folder))
    kept = list_cache()[0].path
    before = kept.read_bytes()
    monkeypatch.setattr(packed_file, "FORMAT_VERSION", packed_file.FORMAT_VERSION + 1)
    with pytest.raises(OtherVersionError, match="it is of version") as caught:
        load_model(spec(llama_folder))
    assert str(kept) in caught.value.message
    assert "models --cache --clear" in caught.value.hint
    assert [path.read_bytes() for path in folder.rglob("*") if path.is_file()] == [before]


def keep_tiny_texts(tmp_path: Path) -> list[str]:
    """Keep the texts of a GGUF file; give what is announced."""
    lines: list[str] = []
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    source = Source("some.gguf", tmp_path, "some.gguf")
    keep_texts(source, tiny_model("llama").config, tiny_tokenizer(), lines.append)
    return lines


def test_texts_that_cannot_be_kept_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "file"))
    lines = keep_tiny_texts(tmp_path)
    assert lines == [
        f"config and tokenizer of some.gguf are not kept in {tmp_path / 'file' / 'texts'}: Not a directory"
    ]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_kept_texts_whose_model_is_not_known_say_so(tmp_path: Path, folder: Path, content: str | None) -> None:
    assert keep_tiny_texts(tmp_path) == []
    assert (list_cache()[0].model, list_cache()[0].state) == ("some.gguf", "ready")
    about = next(folder.rglob("lowmem-layers.json"))
    about.unlink()
    if content is not None:
        about.write_text(content)
    entry = list_cache()[0]
    assert entry.model == ""
    assert entry.state.startswith("ready; its model is not known: lowmem-layers.json cannot be read")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LOWMEM_LAYERS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lowmem-layers"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lowmem-layers"


def test_kept_texts_that_have_changed_are_made_again(tmp_path: Path, folder: Path) -> None:
    """One flipped bit may leave a tokenizer that reads, and cuts other tokens."""
    assert keep_tiny_texts(tmp_path) == []
    path = next(folder.rglob("tokenizer.json"))
    sound = path.read_bytes()
    path.write_bytes(bytes([*sound[:-40], sound[-40] ^ 1, *sound[-39:]]))
    assert keep_tiny_texts(tmp_path) == [f"{path.parent} is not as it was written; config and tokenizer are made again"]
    assert path.read_bytes() == sound
    assert keep_tiny_texts(tmp_path) == []
