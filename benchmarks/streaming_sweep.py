"""What does streaming cost the engine? Sweeps over real items with packed weights on disk, in RAM, and dense in RAM.

One process loads the model once for each home, and the homes alternate on the same tile, which the engine chooses. All
numbers must be equal to the bit. "dense" keeps in its modules the weights that the packed ones unpack to, so it fetches
and unpacks nothing. --folder is a model (`benchmarks.streaming --write DIR` writes one of 3.2 B parameters); without
it, the model is the embedded one. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.setting import all_windows, finish, parser, real_items
from lowmem_layers.engine import ready_engine
from lowmem_layers.model import EMBEDDED_MODEL, ModelSpec, load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.homes.store import ResidentStore, Visit


def loaded(home: str, options: argparse.Namespace) -> DecoderModel:
    """Load a model with packed weights on disk or in RAM, or with weights that are unpacked once and kept."""
    offload: Any = "disk" if home == "disk" else "cpu"
    spec = ModelSpec(options.folder or EMBEDDED_MODEL, options.quant, options.dtype, "cpu", offload=offload)
    model = load_model(spec, lambda line: print(line, file=sys.stderr))
    return model if home != "dense" else dense(model)


def dense(model: DecoderModel) -> DecoderModel:
    """Keep every visit's weights in the modules."""
    kept: dict[Any, torch.Tensor] = {}
    model.examine()  # before the sweep below: that is a sweep too
    layers = model.anatomy.layers
    visits = [Visit(layer, frozenset({"attn", "ffn"})) for layer in range(len(model.players) // 2)]
    for visit in model.store.sweep(visits):
        kept |= {weight: weight.data.clone() for weight in layers[visit.layer].layer.parameters()}
    for weight, data in kept.items():
        weight.data = data
    return DecoderModel(model.module, model.tokenizer, ResidentStore(), shape=model.shape)


def main() -> None:
    """Measure the homes in alternation."""
    options_parser = parser(__doc__.splitlines()[0] if __doc__ else None)
    options_parser.add_argument("--folder", default="", help="a model's folder")
    options_parser.add_argument("--tasks", default="winogrande")
    options_parser.add_argument("--rounds", type=int, default=3)
    options_parser.add_argument("--homes", default="disk,cpu")
    options = options_parser.parse_args()
    torch.set_num_threads(options.threads)
    homes = options.homes.split(",")
    models = {home: loaded(home, options) for home in homes}
    first = models[homes[0]]
    items, coalitions = real_items(first, options, options.tasks.split(",")), all_windows(first, options)
    engines = {home: ready_engine(model, layout="trie") for home, model in models.items()}
    tile = [items[index] for index in engines[homes[0]].plan_tiles(items, coalitions)[0]]
    work = engines[homes[0]].work(tile, coalitions)
    times: dict[str, list[float]] = {home: [] for home in homes}
    scores: dict[str, Sequence[np.ndarray]] = {}
    for _ in range(options.rounds):
        for home, engine in engines.items():
            start = time.perf_counter()
            scores[home] = engine.score(tile, coalitions)
            times[home].append(time.perf_counter() - start)
            print(f"{home}: {times[home][-1]:.2f} s", flush=True)
    medians = {home: statistics.median(each) for home, each in times.items()}
    equal = all(np.array_equal(a, b) for s in scores.values() for a, b in zip(s, scores[homes[0]], strict=True))
    for home in homes[1:]:
        print(f"{homes[0]} takes {medians[homes[0]] / medians[home]:.3f} times as long as {home}")
    print(f"log-likelihoods equal to the bit: {equal}")
    finish(
        {"benchmark": "streaming_sweep", "seconds": times, "median_s": medians, "equal": equal, "items": len(tile),
         "coalitions": len(coalitions), "work_macs": work, "home": {h: m.describe() for h, m in models.items()}},
        options,
    )  # fmt: skip


if __name__ == "__main__":
    main()
