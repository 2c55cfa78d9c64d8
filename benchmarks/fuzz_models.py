"""Bad models for `benchmarks.fuzz`: the files of a tiny Llama's folder, plain and GPTQ, and a tiny GGUF file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ON_ONE_MODEL = ("--model", "model", "--tasks", "sound.toml", "--limit", "1")
TASK = 'data = "sound.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'
PLAN = ("plan", *ON_ONE_MODEL, "--for", "rtx-4090")
RUN = (
    "run", *ON_ONE_MODEL, "--max-removed", "0", "--device", "cpu", "--threads", "1", "--display", "none", "--no-cache",
    "--out", "out",
)  # fmt: skip
PACKINGS = (
    {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True},
    {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "fp8", "weight_block_size": [32, 32]},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
)
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def write_task(folder: Path) -> None:
    """Write a task of one item, which any tokenizer can encode."""
    (folder / "sound.jsonl").write_text('{"q": "the one", "options": [" a", " b"], "answer": 0}\n')
    (folder / "sound.toml").write_text(TASK)


def llama_inputs(folder: Path, rng: random.Random, mutated: Callable[..., tuple[str, Any]]) -> Iterator[Any]:
    """Mutate one file of a plain or a GPTQ Llama."""
    from tests.model.conftest import save_model

    save_model(folder / "sound", "llama")
    save_model(folder / "sound-gptq", "llama")
    pack_as_gptq(folder / "sound-gptq")
    write_task(folder)
    while True:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        kind = rng.choice(("sound", "sound-gptq"))
        shutil.copytree(folder / kind, folder / "model")
        name = rng.choice(FILES)
        path = folder / "model" / name
        if path.suffix == ".json":
            stored = json.loads(path.read_text())
            if name == "config.json" and kind == "sound" and rng.random() < 0.5:
                stored["quantization_config"] = dict(rng.choice(PACKINGS))
            if name == "config.json" and kind == "sound-gptq" and rng.random() < 0.5:
                said, stored["quantization_config"] = mutated(stored["quantization_config"], rng)
                changed = stored
            else:
                said, changed = mutated(stored, rng)
            path.write_text(json.dumps(changed))
        else:
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            said, header = mutated(json.loads(content[8 : 8 + length]), rng)
            text = json.dumps(header).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        yield f"{kind}: {name}: {said}", list(RUN if rng.random() < 0.25 else PLAN)


def acting_inputs(
    folder: Path, rng: random.Random, mutated: Callable[..., tuple[str, Any]], words: tuple[str, ...]
) -> Iterator[Any]:
    """Change the record of a run of a tiny Llama, or give an option of a command that loads its model a bad value."""
    from lowmem_layers.cli.entry import run_command_line
    from tests.model.conftest import save_model

    save_model(folder / "acted-on", "llama")
    items = [{"q": f"the {n}", "options": [" one", " two"], "answer": n % 2} for n in range(8)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "whole.toml").write_text(TASK.replace("sound.jsonl", "items.jsonl"))
    usual = ["--model", "acted-on", "--tasks", "whole.toml", "--threads", "1", "--display", "none", "--no-cache"]
    removed = ["run", *usual, "--max-removed", "2", "--out", "real"]
    rounded = ["run", *usual, "--max-removed", "1", "--change", "quantise:nf4", "--out", "rounded"]
    for command in (removed, rounded):
        if run_command_line(command):
            raise SystemExit("the run that is to be changed failed")
    commands = {
        ("prune", "real", "--remove", "1", "-o", "out"): ("form", "dtype", "value", "seed"),
        ("prune", "real", "-o", "out"): ("sublayers", "lose-at-most", "decoder-layers", "remove"),
        ("proxies", "real"): ("value", "estimator", "format"),
        ("bits", "rounded", "-o", "out"): ("budget",),
        ("bits", "rounded", "--budget", "6", "-o", "out"): ("value", "seed"),
    }
    sound = {path: path.read_text() for path in (folder / "real" / "run.json", folder / "rounded" / "run.json")}
    while True:
        command, options = rng.choice(list(commands.items()))
        path = folder / command[1] / "run.json"
        if rng.random() < 0.7:
            said, changed = mutated(json.loads(sound[path]), rng)
            if isinstance(changed, dict):
                changed.pop("checksum", None)
            path.write_text(json.dumps(changed))
            extra = [] if len(command) > 4 or command[0] == "proxies" else ["--" + options[0], "4"]
        else:
            said, extra = "option", [f"--{rng.choice(options)}", rng.choice(words)]
        yield said, [*command, *extra]
        path.write_text(sound[path])
        shutil.rmtree(folder / "out", ignore_errors=True)


def pack_as_gptq(folder: Path) -> None:
    """Replace a folder's linear layers by GPTQ's four tensors each: random codes, which is enough for reading."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors, packed = load_file(folder / "model.safetensors"), {}
    for name, value in tensors.items():
        if "_proj.weight" not in name:
            packed[name] = value
            continue
        stem, (rows, columns) = name.removesuffix(".weight"), value.shape
        groups = columns // 32
        packed[f"{stem}.qweight"] = torch.randint(-(2**31), 2**31, (columns // 8, rows)).to(torch.int32)
        packed[f"{stem}.qzeros"] = torch.full((groups, rows // 8), 0x77777777, dtype=torch.int32)
        packed[f"{stem}.scales"] = torch.full((groups, rows), 0.01, dtype=torch.float16)
        packed[f"{stem}.g_idx"] = (torch.arange(columns) // 32).to(torch.int32)
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": PACKINGS[0]}))


def gguf_inputs(folder: Path, rng: random.Random, broken: Callable[..., bytes]) -> Iterator[Any]:
    """Break the header of a GGUF file."""
    import torch

    from tests.model.conftest import tiny_model, tiny_tokenizer
    from tests.model.gguf_files import write_gguf

    known = tiny_tokenizer().get_vocab()
    tokens = [*sorted(known, key=known.__getitem__), "ab"]  # what the one merge makes
    keys = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    file = folder / "sound.gguf"
    write_gguf(file, tiny_model("llama", torch.float32, vocab_size=len(tokens)), keys=keys)
    write_task(folder)
    sound = file.read_bytes()
    header = sound.rindex(b"blk.") + 64
    while True:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "model").mkdir()
        changed = broken(sound[:header], rng) if rng.random() < 0.9 else broken(sound, rng)
        (folder / "model" / "model.gguf").write_bytes(changed + (sound[header:] if len(changed) <= header else b""))
        yield f"GGUF of {len(changed)} bytes", list(RUN if rng.random() < 0.25 else PLAN)
