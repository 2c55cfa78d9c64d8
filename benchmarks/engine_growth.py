"""How do time and memory grow with items, sublayers, window size and length?

Work is counted in sublayer applications and compared with the closed form of the prefix tree; time is compared with the
multiply-adds that the engine plans. Models are Llamas with random weights, as wide as the embedded model, with 4 to 16
layers; items are random tokens. The peak memory of each number of items is measured in its own process. The last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.setting import finish
from lowmem_layers.engine import ready_engine
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.tree import windows_formula
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks import EncodedChoice, EncodedItem


def random_llama(n_layers: int) -> DecoderModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=n_layers, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=8192, max_position_embeddings=2048,
    )  # fmt: skip
    return DecoderModel(transformers.LlamaForCausalLM(config).eval())


def random_items(n_items: int, length: int) -> list[EncodedItem]:
    draw = np.random.default_rng(0).integers(3, 8000, (n_items, length + 8))
    items = []
    for index, row in enumerate(draw.tolist()):
        context = tuple(row[:length])
        choices = tuple(EncodedChoice((*context, *row[length + 2 * j : length + 2 * j + 2]), 2) for j in range(4))
        items.append(EncodedItem("random", str(index), choices, 0, str(index)))
    return items


def measure(n_items: int, n_layers: int, max_removed: int, length: int) -> dict[str, Any]:
    """Run one setting tile by tile, as a study does."""
    engine = ready_engine(random_llama(n_layers), tile_work=10**11)
    items, coalitions = random_items(n_items, length), windows(2 * n_layers, max_removed)
    tiles = engine.plan_tiles(items, coalitions)
    engine.counted_applications = 0
    begin = time.perf_counter()
    for tile in tiles:
        engine.score([items[i] for i in tile], coalitions)
    seconds = time.perf_counter() - begin
    return {
        "items": n_items, "players": 2 * n_layers, "max_removed": max_removed, "length": length, "tiles": len(tiles),
        "seconds": seconds, "tera_macs": engine.work(items, coalitions) / 1e12,
        "applications": engine.counted_applications,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def in_its_own_process(**setting: int) -> dict[str, Any]:
    """Measure one setting in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.engine_growth", "--one", json.dumps(setting)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


SETTING = {"n_items": 4, "n_layers": 8, "max_removed": 4, "length": 32}
SERIES = {"n_items": (4, 8, 16, 32), "n_layers": (4, 8, 16), "max_removed": (0, 1, 2, 4), "length": (16, 32, 64, 128)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--one")
    options = options.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    series = {name: [in_its_own_process(**SETTING | {name: v}) for v in values] for name, values in SERIES.items()}
    for name, rows in series.items():
        print(f"\nby {name}")
        for row in rows:
            expected = windows_formula(row["players"], row["max_removed"])
            row["batches"] = row["applications"] / expected
            row["gmacs_per_s"] = 1000 * row["tera_macs"] / row["seconds"]
            print(
                f"  {row['items']:3d} items, N {row['players']:2d}, L {row['max_removed']}, length {row['length']:3d}: "
                f"{row['applications']:6d} applications = {row['batches']:.0f} × {expected}, "
                f"{row['seconds']:6.2f} s, {row['gmacs_per_s']:5.0f} GMAC/s, peak {row['peak_mib']:,.0f} MiB"
            )
    finish({"benchmark": "engine_growth", "series": series}, argparse.Namespace())


if __name__ == "__main__":
    main()
