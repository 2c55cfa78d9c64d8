"""A damaged, foreign or contradictory checkpoint ends in one line and a hint, with nothing left half done."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.cli.entry import run_command_line
from tests.model.conftest import save_model, tiny_model, tiny_tokenizer

WEIGHT = "model.layers.1.mlp.up_proj.weight"
Damage = Callable[[Path], None]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of weights."""
    folder = tmp_path_factory.mktemp("sound")
    save_model(folder, "llama")
    return folder


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards and an index."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model("llama").save_pretrained(folder, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command on a model; give status and lines on stderr."""
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))

    def command(model: Path, *options: str) -> tuple[int, list[str]]:
        fixed = ["--limit", "2", "--max-removed", "0", "--device", "cpu", "--display", "none"]
        capfd.readouterr()
        status = run_command_line(["run", "--model", str(model), *fixed, "--out", str(tmp_path / "out"), *options])
        return status, capfd.readouterr().err.splitlines()

    return command


def change(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def configure(**fields: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content) and None


def header(edit: Callable[[Any], object]) -> Damage:
    """Change the second shard's header."""

    def damage(folder: Path) -> None:
        file = sorted(folder.glob("*.safetensors"))[1]
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        table = json.loads(content[8 : 8 + length])
        table = edit(table) or table
        text = json.dumps(table).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return damage


def first_entry(table: Any) -> dict[str, Any]:
    return table[next(name for name in table if name != "__metadata__")]


def index(edit: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        document = json.loads(path.read_text())
        edit(document["weight_map"])
        path.write_text(json.dumps(document))

    return damage


def second_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def spell_wrong(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"dtype', b"\xff" * 6))


def spoil(value: float) -> Damage:
    return change(lambda tensors: tensors[WEIGHT].view(-1).__setitem__(5, value))


SHARDS: dict[str, tuple[Damage, str]] = {
    "truncated": (
        lambda folder: second_shard(folder).write_bytes(second_shard(folder).read_bytes()[:-100]) and None,
        "model-00002-of-00003.safetensors is truncated: model.",
    ),
    "header-bytes": (
        lambda folder: spell_wrong(second_shard(folder)),
        "model-00002-of-00003.safetensors has a damaged header",
    ),
    "header-entry": (header(lambda t: first_entry(t).pop("data_offsets") and None), "lacks its type, shape or place"),
    "header-list": (header(lambda _: [1, 2]), "it is no table of tensors"),
    "header-offsets": (
        header(lambda t: first_entry(t).update(data_offsets=[-256, -128])),
        "at bytes -256 to -128",
    ),
    "missing-shard": (lambda f: second_shard(f).unlink(), "model-00002-of-00003.safetensors is missing from"),
    "index-file": (index(lambda m: m.update({WEIGHT: "model-9.safetensors"})), "model-9.safetensors is missing from"),
    "index-escape": (
        index(lambda m: m.update({WEIGHT: "../x.safetensors"})),
        "is in '../x.safetensors', which",
    ),
    "index-number": (index(lambda m: m.update({WEIGHT: 5})), f"{WEIGHT} is in 5, which is no file"),
    "index-list": (
        write("model.safetensors.index.json", "[]"),
        "is not a checkpoint's index",
    ),
}

FILES: dict[str, tuple[Damage, str]] = {
    "missing-tensor": (change(lambda t: t.pop(WEIGHT)), f"lacks the tensor {WEIGHT}"),
    "wrong-shape": (change(lambda t: t.update({WEIGHT: torch.zeros(96, 63)})), f"{WEIGHT} has shape (96, 63)"),
    "nan": (spoil(float("nan")), f"model.safetensors: {WEIGHT} holds NaN"),
    "inf": (spoil(float("inf")), f"model.safetensors: {WEIGHT} holds NaN or infinite"),
    "awq": (configure(quantization_config={"quant_method": "awq", "bits": 4}), "(AWQ 4-bit), but no weight is"),
    "fp8": (configure(quantization_config={"quant_method": "fp8"}), "is packed (FP8), but no weight is"),
    "aqlm": (configure(quantization_config={"quant_method": "aqlm"}), "the checkpoint is quantised by 'aqlm'"),
    "unnamed": (configure(quantization_config={"bits": 4}), "quantised, by a method that has no name"),
    "quantisation-list": (configure(quantization_config=[4]), "quantization_config is no table"),
    "config-text": (write("config.json", "{"), "config.json is not JSON"),
    "config-list": (write("config.json", "[]"), "config.json is no model's config"),
    "config-word": (configure(num_hidden_layers="three"), "expected int, got str (value: 'three')"),
    "config-negative": (configure(hidden_size=-4), "no causal language model can be built"),
    "more-layers": (configure(num_hidden_layers=5), "lacks the tensor model.layers.3."),
    "fewer-layers": (configure(num_hidden_layers=2), "but config.json says 2 decoder layers"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None,
        "pytorch_model.bin is a pickle: opening it could run any code",
    ),
    "tokenizer": (write("tokenizer.json", "{"), "has no tokenizer that can be read"),
    "unsaid-gptq": (change(lambda t: t.update({"model.layers.1.mlp.up_proj.qweight": torch.ones(8)})), "not say how"),
}


def check_refused(found: tuple[int, list[str]], message: str, tmp_path: Path) -> None:
    status, lines = found
    assert status == 2
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].startswith("hint: ")
    assert not list((tmp_path / "cache").glob("*"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", SHARDS)
def test_damaged_shards(case: str, sharded: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    damage, message = SHARDS[case]
    shutil.copytree(sharded, tmp_path / "model")
    damage(tmp_path / "model")
    check_refused(run(tmp_path / "model", "--quant", "4bit"), message, tmp_path)


@pytest.mark.parametrize("case", FILES)
def test_damaged_or_foreign_files(case: str, sound: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    damage, message = FILES[case]
    shutil.copytree(sound, tmp_path / "model")
    damage(tmp_path / "model")
    quant = [] if case in ("awq", "fp8", "aqlm", "unnamed") else ["--quant", "4bit"]
    check_refused(run(tmp_path / "model", *quant), message, tmp_path)


def write_gguf(path: Path, architecture: str, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    blocks = torch.zeros(4, gguf.GGML_QUANT_SIZES[kind][1], dtype=torch.uint8).numpy()
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("architecture", "kind", "cut", "message"),
    [
        ("mamba", "Q4_0", None, "x.gguf is a GGUF of architecture 'mamba', whose layout is not known here"),
        ("llama", "Q8_K", None, "x.gguf: blk.0.ffn_up.weight is in blocks of type Q8_K"),
        ("llama", "Q4_0", -40, "x.gguf is truncated: blk.0.ffn_up.weight ends at byte"),
        ("llama", "Q4_0", 60, "x.gguf has a truncated or damaged GGUF header"),
        ("llama", "Q4_0", 10, "x.gguf has a truncated or damaged GGUF header"),
    ],
)
def test_gguf_files(
    architecture: str, kind: str, cut: int | None, message: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, architecture, gguf.GGMLQuantizationType[kind])
    path.write_bytes(path.read_bytes()[:cut])
    check_refused(run(path), message, tmp_path)


def test_a_gguf_of_an_unknown_block_type(tmp_path: Path, run: Callable[..., Any]) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, "llama", gguf.GGMLQuantizationType.Q4_0)
    content = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(content[:at] + struct.pack("<I", 99) + content[at + 4 :])
    check_refused(run(path), "x.gguf: blk.0.ffn_up.weight has the unknown type 99", tmp_path)


def test_a_cache_that_cannot_be_written(
    sound: Path, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, the run goes on without it; a home on disk has nowhere to be."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "file"))
    status, lines = run(sound, "--quant", "4bit", "--offload", "disk")
    assert status == 2
    assert f"the packed weights cannot be kept in {tmp_path / 'file'}: " in lines[0]
    assert "LOWMEM_LAYERS_CACHE" in lines[1]
    assert run(sound, "--quant", "4bit")[0] == 0
    assert (tmp_path / "file").read_text() == "in the way"
