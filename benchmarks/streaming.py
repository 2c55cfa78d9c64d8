"""Weights on disk, a model larger than the memory: peak memory and the price of streaming.

A randomly initialised Llama of 3 B parameters is written in bfloat16, shard by shard. Then, each in its own process:

    disk, cpu   ours: 4-bit, packed weights on disk under --limit (this one also quantises), or in RAM; then sweeps
    theirs      transformers with every decoder layer offloaded to disk in full precision: forward passes

The ceiling is printed first: what the same matrix products take with weights that are already dense in memory. A sweep
here is one pass of `--tokens` tokens through all layers (the engine passes hundreds of states a visit, which hides the
reading). The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.model import ModelSpec, load_model, parse_bytes
from lowmem_layers.model.memory import peak_bytes

SHAPE = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {**SHAPE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """Write a random Llama layer by layer, never holding more than one shard. Units: returns the bytes written."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from lowmem_layers.model.checkpoint.skeleton import build_skeleton

    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"])
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    write_tokenizer(folder)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, value in build_skeleton(config, torch.bfloat16).state_dict().items():
        parts = name.split(".")
        part = parts[2] if parts[1] == "layers" else "rest"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = value.shape
    for file, shapes in shards.items():
        tensors = {name: random_weight(name, shape) for name, shape in shapes.items()}
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def random_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Draw a weight; the same small piece is repeated, since drawing billions of numbers is not what is measured."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    piece = torch.randn(1 << 16, generator=torch.Generator().manual_seed(len(name))).mul_(0.02).bfloat16()
    return piece.repeat(-(-shape.numel() // piece.numel()))[: shape.numel()].view(shape).clone()


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single letters: the loader wants one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="a").save_pretrained(folder)


def ours(folder: Path, limit: int | None, offload: Any, n_tokens: int, repeats: int) -> dict[str, Any]:
    """Load in 4-bit and pass tokens through, once to warm up and `repeats` times."""
    start = time.perf_counter()
    spec = ModelSpec(str(folder), "4bit", "bfloat16", "cpu", offload=offload, max_cpu_memory=limit)
    model = load_model(spec, lambda line: print(line, file=sys.stderr))
    load_s = time.perf_counter() - start
    loading_peak = peak_bytes()

    def step() -> torch.Tensor:
        with torch.inference_mode(), model.streaming():
            return model.module.model(torch.arange(n_tokens)[None] % 26).last_hidden_state

    times = timed(step, repeats)
    return {"load_s": load_s, "loading_peak_bytes": loading_peak, "peak_bytes": peak_bytes(),
            "sweep_s": times, **model.describe()}  # fmt: skip


def theirs(folder: Path, n_tokens: int, repeats: int) -> dict[str, Any]:
    """Run transformers' full-precision disk offload."""
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
                      "model.layers": "disk"}  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, offload_folder=scratch, dtype=torch.bfloat16
        )
        load_s = time.perf_counter() - start
        with torch.inference_mode():
            times = timed(lambda: model.model(torch.arange(n_tokens)[None] % 26).last_hidden_state, repeats)
    return {"load_s": load_s, "peak_bytes": peak_bytes(), "sweep_s": times}


def ceiling_s(shape: dict[str, Any], n_tokens: int, repeats: int) -> float:
    """Time one layer's matrix products with dense weights in memory, times the layers. Units: seconds a sweep."""
    d, f = shape["hidden_size"], shape["intermediate_size"]
    kv = d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    x, wide = torch.randn(n_tokens, d).bfloat16(), torch.randn(n_tokens, f).bfloat16()
    rows = [torch.randn(n, d).bfloat16() for n in (d, kv, kv, d, f, f)]
    down = torch.randn(d, f).bfloat16()

    def step() -> None:
        for weight in rows:
            torch.nn.functional.linear(x, weight)
        torch.nn.functional.linear(wide, down)

    return statistics.median(timed(step, repeats)) * shape["num_hidden_layers"]


def timed(step: Any, repeats: int) -> list[float]:
    """Run once to warm up, then time each of `repeats` runs. Units: seconds."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def in_own_process(arguments: list[str]) -> dict[str, Any]:
    """Run this file again for one measurement, so that its peak is its own."""
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    """Measure, or with --part do one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="where the model is written (default: a temporary folder)")
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that the script works")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--part", choices=["disk", "cpu", "theirs"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "theirs":
        print(json.dumps(theirs(options.folder, options.tokens, options.repeats)))
    elif options.part:
        limit = parse_bytes(options.limit) if options.part == "disk" else None
        print(json.dumps(ours(options.folder, limit, options.part, options.tokens, options.repeats)))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            measure_all(Path(scratch), options)


def measure_all(folder: Path, options: argparse.Namespace) -> None:
    """Write the model, run every part and print the document."""
    shape = TINY if options.tiny else SHAPE
    ceiling = ceiling_s(shape, options.tokens, options.repeats)
    print(f"ceiling: {ceiling:.2f} s a sweep of {options.tokens} tokens (dense weights in memory)")
    n_bytes = write_model(folder, shape)
    print(f"checkpoint: {n_bytes / 2**30:.2f} GiB in bfloat16")
    common = ["--folder", str(folder), "--tokens", str(options.tokens), "--repeats", str(options.repeats)]
    parts = ["disk", "cpu"] + ([] if options.no_baseline else ["theirs"])
    results = {part: in_own_process([*common, "--part", part, "--limit", options.limit]) for part in parts}
    for part, result in results.items():
        sweep = statistics.median(result["sweep_s"])
        print(
            f"{part}: load {result['load_s']:.1f} s, sweep {sweep:.2f} s, peak {result['peak_bytes'] / 2**30:.2f} GiB"
        )
    document = {
        "benchmark": "streaming", "checkpoint_bytes": n_bytes, "shape": shape, "tokens": options.tokens,
        "limit": options.limit, "ceiling_sweep_s": ceiling, "results": results, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(document))


if __name__ == "__main__":
    main()
