"""Does a sweep take the hours that `plan` predicts? Both in CPU seconds of one thread.

Forecast and sweep alternate in one process. CPU seconds leave out the time that other programs take, but not what those
programs do to caches and to the clock rate. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lowmem_layers.engine import Engine, ready_engine
from lowmem_layers.forecast import speed
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.tree import prefix_tree
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.tasks import encode_task, load_tasks

CASES = (("quick", 6, 4), ("arc_easy", 3, 2), ("boolq", 1, 1))  # task, items, most sublayers removed
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One measurement of one case. Units: CPU seconds."""

    task: str
    items: int
    tokens: int
    measured_s: float
    layers_s: float
    head_s: float
    unpacking_s: float

    @property
    def ratio(self) -> float:
        """Divide the predicted time by the measured time."""
        return (self.layers_s + self.head_s + self.unpacking_s) / self.measured_s


def compare(engine: Engine, target: str, task: str, n_items: int, max_removed: int, folder: Path | None) -> Row:
    """Forecast a sweep, then run it."""
    model = engine.model
    (loaded,) = load_tasks([task], limit=n_items, data_dir=folder)
    items = encode_task(loaded, model.tokenizer, max_length=model.max_length)
    coalitions = windows(len(model.players), max_removed)
    rows = engine._rows(items)
    tokens = sum(map(len, rows))
    scored = sum(len(row.scored_nodes) for row in rows)
    n_slots = prefix_tree(coalitions, len(model.players)).n_slots
    head = n_slots * scored * model.config.hidden_size * model.config.vocab_size
    layers = engine.work(items, coalitions) - head
    usual = round(sum(len(row) ** 2 for row in rows) / tokens)
    found = speed.measure_speed(model.config, target, CPU, model.dtype, usual)
    assert found is not None
    start = time.process_time()
    engine.score(items, coalitions)
    took = time.process_time() - start
    numbers = sum(model.shape.macs)
    return Row(
        task, n_items, tokens, took, layers / found.layer_macs_s, head / found.head_macs_s, numbers / found.unpacked_s
    )


def main() -> None:
    """Compare every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, help="folder with the benchmarks' items; without it, only quick")
    parser.add_argument("--quant", choices=("none", "4bit"), default="4bit")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    speed.time.perf_counter = time.process_time
    engine = ready_engine(load_model(ModelSpec(dtype="float32", quant=options.quant, device="cpu")))
    target = {"none": "none", "4bit": "nf4"}[options.quant]
    found = []
    for case in CASES if options.data_dir else CASES[:1]:
        for _ in range(options.rounds):
            with torch.inference_mode():
                row = compare(engine, target, *case, options.data_dir)
            found.append({**asdict(row), "ratio": row.ratio})
            print(f"{row.task:<10}{row.tokens:>5} tokens  {row.measured_s:7.2f} s  ratio {row.ratio:.2f}", flush=True)
    print(json.dumps({"benchmark": "forecast_time", "quant": options.quant, "rows": found, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
