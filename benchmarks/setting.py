"""The start and the end that all engine benchmarks share: the embedded model, real items, and the JSON document."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import lowmem_layers
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.checkpoint.embedded import embedded_model_path
from lowmem_layers.tasks import EncodedItem, encode_task, load_tasks

SIX = ("boolq", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser with the options that all engine benchmarks share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data-dir", default=os.environ.get("LOWMEM_LAYERS_DATA"), help="folder with TASK.jsonl")
    options.add_argument("--items", type=int, default=4, help="items of each benchmark")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--device", default="cpu")
    options.add_argument("--quant", default="none")
    options.add_argument("--max-removed", type=int, default=4)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    return options


def start(options: argparse.Namespace) -> DecoderModel:
    """Load the embedded model; exit with a reason if there are no items to measure with."""
    if not options.data_dir:
        sys.exit("needs real items: give --data-dir FOLDER (or set LOWMEM_LAYERS_DATA) with boolq.jsonl and the others")
    torch.set_num_threads(options.threads)
    return load_model(ModelSpec(quant=options.quant, dtype=options.dtype, device=options.device))


def start_resident(options: argparse.Namespace) -> DecoderModel:
    """Load the embedded model as transformers itself does: all weights dense, for baselines that run its own
    forward."""
    tokenizer, source = start(options).tokenizer, embedded_model_path()
    module = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=getattr(torch, options.dtype)
    )
    return DecoderModel(module, tokenizer)


def real_items(model: DecoderModel, options: argparse.Namespace, names: Sequence[str] = SIX) -> list[EncodedItem]:
    """Encode the first items of each benchmark, without BOS."""
    tasks = load_tasks(names, data_dir=Path(options.data_dir), limit=options.items)
    return [i for task in tasks for i in encode_task(task, model.tokenizer, bos="none", max_length=model.max_length)]


def all_windows(model: DecoderModel, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """List the full model and all windows."""
    return windows(len(model.players), options.max_removed)


def finish(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the JSON document that ends every benchmark; it has all that a repetition needs."""
    versions = {"lowmem-layers": lowmem_layers.__version__, "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "python": platform.python_version()}
    machine = {"processor": _processor(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    asked = {name: value for name, value in vars(options).items() if name not in ("data_dir", "scores", "figure")}
    print(json.dumps({**result, "options": asked, "versions": versions, "machine": machine}))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.processor()
