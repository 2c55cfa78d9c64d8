"""GGUF models in several parts, in folders, and on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.source import Source, find_source
from lowmem_layers.model.spec import ModelSpec
from tests.model.conftest import tiny_model
from tests.model.gguf_files import read_model, write_gguf

PARTS = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in three parts."""
    folder = tmp_path_factory.mktemp("split")
    write_gguf(folder / "tiny.gguf", tiny_model("llama", torch.float32), tensors_a_part=10)
    assert sorted(path.name for path in folder.iterdir()) == PARTS
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_any_part_names_the_model(split: Path, part: str) -> None:
    source = find_source(ModelSpec(str(split / part)))
    assert (source.gguf, [path.name for path in source.weight_files]) == (PARTS[0], PARTS)
    exact = tiny_model("llama", torch.float32).state_dict()
    read = read_model(split / part).state_dict()
    assert all(torch.equal(read[name], exact[name]) for name in exact)


def test_a_folder_of_parts_is_one_model(split: Path) -> None:
    assert find_source(ModelSpec(str(split))) == Source(str(split), split, PARTS[0])


def test_parts_that_do_not_make_one_model(split: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(split, tmp_path / "x")
    (folder / PARTS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"the model has 3 parts, and .* lacks {PARTS[1]}$"):
        read_gguf_header(folder / PARTS[2])
    shutil.copy(split / PARTS[2], folder / PARTS[1])
    with pytest.raises(CheckpointError, match=rf"{PARTS[2]} is no part of the model that {PARTS[0]} begins"):
        read_gguf_header(folder / PARTS[0])
    shutil.copy(split / PARTS[0], folder / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"renamed\.gguf is one of 3 parts, but its name does not say so"):
        read_gguf_header(folder / "renamed.gguf")
    write_gguf(folder / PARTS[1], tiny_model("llama", torch.float32), keys={"split.count": 3})
    with pytest.raises(CheckpointError, match="is no part of the model"):
        read_gguf_header(folder / PARTS[0])


def test_a_folder_of_several_models(split: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(split, tmp_path / "x")
    (folder / "mmproj-F16.gguf").write_bytes(b"GGUF")  # for images: not a model of its own
    assert find_source(ModelSpec(str(folder))).gguf == PARTS[0]
    (folder / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"x holds 2 GGUF models: other\.gguf, tiny-00001-of-00003\.gguf") as caught:
        find_source(ModelSpec(str(folder)))
    assert str(folder / "other.gguf") in caught.value.hint


@pytest.fixture
def hub(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that offers the listed files; those that are fetched lie in tmp_path."""
    offered: list[str] = ["README.md", *PARTS, "mmproj-F16.gguf"]

    def fetch(_name: str, *, allow_patterns: list[str], **_: Any) -> str:
        for file in offered:
            if file in allow_patterns:
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).write_bytes(b"GGUF")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: offered)
    return offered


def test_a_hub_id_that_holds_one_gguf_model(hub: list[str], tmp_path: Path) -> None:
    source = find_source(ModelSpec("some/model-GGUF"))
    assert source == Source("some/model-GGUF", tmp_path, PARTS[0])
    assert all(path.exists() for path in source.weight_files)
    assert not (tmp_path / "mmproj-F16.gguf").exists()


def test_a_hub_id_that_holds_several(hub: list[str], tmp_path: Path) -> None:
    hub.append("big/model-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"some/model-GGUF holds 2 GGUF models: big/model-Q8_0\.gguf, tiny") as caught:
        find_source(ModelSpec("some/model-GGUF"))
    assert "some/model-GGUF/big/model-Q8_0.gguf" in caught.value.hint
    source = find_source(ModelSpec("some/model-GGUF/big/model-Q8_0.gguf"))
    assert source == Source("some/model-GGUF/big/model-Q8_0.gguf", tmp_path / "big", "model-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"some/model-GGUF holds no none\.gguf"):
        find_source(ModelSpec("some/model-GGUF/none.gguf"))


@pytest.mark.parametrize("name", ["nowhere.gguf", "model.safetensors", "model.BIN", "here/nowhere.gguf"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match=f"^{name} does not exist$"):
        find_source(ModelSpec(name))
