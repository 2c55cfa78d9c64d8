"""What is the peak memory of a model that is larger than the memory, and what does streaming cost?

A randomly initialised Llama of 3.2 B parameters is written in bfloat16, shard by shard. Then each part runs in its own
process:

    disk, cpu   ours: 4-bit, packed weights on disk under --limit (this part also quantises), or in RAM; then sweeps
    theirs      transformers with every decoder layer offloaded to disk in full precision: forward passes
    theirs_8bit, theirs_8bit_allowed
                the same in bitsandbytes' 8-bit, without and with llm_int8_enable_fp32_cpu_offload; the error that it
                raises is a result, and so are the weights that stay unquantised

The ceiling is printed first: the time of the same matrix products with weights that are already dense in memory. A
sweep in this benchmark is one pass of `--tokens` tokens through all layers. (The engine passes hundreds of states at a
visit, which hides the reading.) The last line of the output is one JSON document.
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
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.model.checkpoint.texts import read_tokenizer
from lowmem_layers.model.devices import resolve_dtype
from lowmem_layers.model.memory import peak_bytes

SHAPE = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 30, "num_attention_heads": 24,
    "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
THEIRS: dict[str, dict[str, Any]] = {
    "theirs": {}, "theirs_8bit": {"bits": 8}, "theirs_8bit_allowed": {"bits": 8, "allowed": True},
}  # fmt: skip
TINY = {**SHAPE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """Write a random Llama layer by layer, with at most one shard in memory. Units: returns the bytes written."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from lowmem_layers.model.checkpoint.skeleton import build_skeleton

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"])
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    write_tokenizer(folder)
    shards: dict[str, dict[str, torch.Size]] = {}
    model: Any = build_skeleton(config, torch.bfloat16)
    for name, value in model.state_dict().items():
        if name in (model.all_tied_weights_keys or {}):
            continue
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
    """Draw a small piece of a weight and repeat it: drawing billions of numbers takes long and is not measured."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    piece = torch.randn(1 << 16, generator=torch.Generator().manual_seed(len(name))).mul_(0.02).bfloat16()
    return piece.repeat(-(-shape.numel() // piece.numel()))[: shape.numel()].view(shape).clone()


def write_tokenizer(folder: Path) -> None:
    """Write the embedded model's tokenizer, so that real items can be scored."""
    embedded = ModelSpec()
    read_tokenizer(find_source(embedded), embedded).save_pretrained(folder)


def ours(folder: Path, limit: int | None, offload: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Load in 4-bit and pass tokens through, once to warm up and then several times."""
    start, n_tokens = time.perf_counter(), options.tokens
    spec = ModelSpec(str(folder), "4bit", options.dtype, "cpu", offload=offload, max_cpu_memory=limit)
    model = load_model(spec, lambda line: print(line, file=sys.stderr))
    load_s = time.perf_counter() - start
    loading_peak = peak_bytes()

    def step() -> torch.Tensor:
        with torch.inference_mode(), model.streaming():
            return model.module.model(torch.arange(n_tokens)[None] % 26).last_hidden_state

    times = timed(step, options.repeats)
    return {"load_s": load_s, "loading_peak_bytes": loading_peak, "peak_bytes": peak_bytes(),
            "sweep_s": times, **model.describe()}  # fmt: skip


def theirs(folder: Path, options: argparse.Namespace, *, bits: int = 0, allowed: bool = False) -> dict[str, Any]:
    """Run transformers' disk offload, in full precision or in bitsandbytes' 8-bit; an error of theirs is a result."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    start = time.perf_counter()
    packing = BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=allowed) if bits else None
    dtype = resolve_dtype(options.dtype, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        device_map = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
                      "model.layers": "disk"}  # fmt: skip
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, device_map=device_map, offload_folder=scratch, dtype=dtype, quantization_config=packing
            )
            load_s = time.perf_counter() - start
            layers = [module for module in model.model.layers.modules() if "Linear" in type(module).__name__]
            kinds = {type(layer).__name__: sum(type(x) is type(layer) for x in layers) for layer in layers}
            with torch.inference_mode():
                ids = torch.arange(options.tokens)[None] % 26
                times = timed(lambda: model.model(ids).last_hidden_state, options.repeats)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what happens to a user
            lines = [line for line in str(error).splitlines() if line.strip()]
            return {"error": f"{type(error).__name__}: {lines[0] if lines else ''}", "peak_bytes": peak_bytes()}
    return {"load_s": load_s, "peak_bytes": peak_bytes(), "sweep_s": times, "linear_modules": kinds}


def ceiling_s(shape: dict[str, Any], n_tokens: int, repeats: int, dtype: torch.dtype) -> float:
    """Time one layer's matrix products with dense weights in memory, times the layers. Units: seconds for a sweep."""
    d, f = shape["hidden_size"], shape["intermediate_size"]
    kv = d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    x, wide = torch.randn(n_tokens, d, dtype=dtype), torch.randn(n_tokens, f, dtype=dtype)
    rows = [torch.randn(n, d, dtype=dtype) for n in (d, kv, kv, d, f, f)]
    down = torch.randn(d, f, dtype=dtype)

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
    """Run this file again for one measurement, so that the peak memory is that of this measurement alone."""
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def main() -> None:
    """Measure, or with --part do one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help="the model, or where it is written (default: a temporary folder)")
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy size, to see that the script works")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--write", type=Path, help="write the model there, and measure nothing")
    parser.add_argument("--part", choices=["disk", "cpu", *THEIRS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(f"{write_model(options.write, TINY if options.tiny else SHAPE):,} bytes in {options.write}")
    elif options.part in THEIRS:
        print(json.dumps(theirs(options.folder, options, **THEIRS[options.part])))
    elif options.part:
        limit = parse_bytes(options.limit) if options.part == "disk" else None
        print(json.dumps(ours(options.folder, limit, options.part, options)))
    elif options.folder and (options.folder / "config.json").is_file():
        measure_all(options.folder, options)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            write_model(Path(scratch) / "model", TINY if options.tiny else SHAPE)
            measure_all(Path(scratch) / "model", options)


def measure_all(folder: Path, options: argparse.Namespace) -> None:
    """Run every part on a model and print the document."""
    shape = json.loads((folder / "config.json").read_text())
    ceiling = ceiling_s(shape, options.tokens, options.repeats, resolve_dtype(options.dtype, torch.device("cpu")))
    print(f"ceiling: {ceiling:.2f} s a sweep of {options.tokens} tokens (dense weights in memory)")
    n_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"checkpoint: {n_bytes / 2**30:.2f} GiB in bfloat16")
    common = ["--folder", str(folder), "--tokens", str(options.tokens), "--repeats", str(options.repeats)]
    common += ["--dtype", options.dtype, "--limit", options.limit]
    parts = ["disk", "cpu", *([] if options.no_baseline else THEIRS)]
    results = {part: in_own_process([*common, "--part", part]) for part in parts}
    for part, result in results.items():
        print(f"{part}: {spell(result)}")
    document = {
        "benchmark": "streaming", "checkpoint_bytes": n_bytes, "shape": {key: shape[key] for key in SHAPE},
        "tokens": options.tokens, "dtype": options.dtype, "limit": options.limit, "ceiling_sweep_s": ceiling,
        "results": results, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(document))


def spell(result: dict[str, Any]) -> str:
    """Write a result as a line of text."""
    peak = f"peak {result['peak_bytes'] / 2**30:.2f} GiB"
    if "error" in result:
        return f"{result['error']} ({peak})"
    sweep = statistics.median(result["sweep_s"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in result.get("linear_modules", {}).items())
    return f"load {result['load_s']:.1f} s, sweep {sweep:.2f} s, {peak}" + (f" ({kinds})" if kinds else "")


if __name__ == "__main__":
    main()
