"""What rounding a 16-bit model's logits to 16 bits does to log-likelihoods: exact ties between choices, and errors.

    python -m benchmarks.head_precision

The embedded model in bfloat16 on the built-in questions, three ways from the same states: logits in bfloat16, as the
model's own head gives them; in float32, as this package computes them; and in float64, which is taken as the truth.
"""

from __future__ import annotations

import argparse
import json
from unittest import mock

import numpy as np
import torch

from lowmem_layers.engine import Engine
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.anatomy import forward
from lowmem_layers.tasks import encode_task, load_tasks


def in_float64(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply in float64. Shapes: (…, D), (V, D) → (…, V)."""
    return torch.nn.functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())


def main() -> None:
    """Score the built-in questions in three ways, and print a table as JSON."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = load_model(ModelSpec(dtype="bfloat16", device="cpu"))
    (task,) = load_tasks(["quick"])
    items = encode_task(task, model.tokenizer, max_length=model.max_length)
    engine = Engine(model)
    engine.examine()

    def score() -> list[np.ndarray]:
        coalitions = [()]
        tiles = engine.plan_tiles(items, coalitions)
        found = {
            i: s
            for tile in tiles
            for i, s in zip(tile, engine.score([items[i] for i in tile], coalitions), strict=True)
        }
        return [found[i][0] for i in range(len(items))]

    with mock.patch.object(forward, "float32_product", in_float64):
        truth = score()
    ways = {"float32 logits": score()}
    with mock.patch.object(forward, "has_wide_head", return_value=False):
        ways["bfloat16 logits"] = score()
    for name, found in ways.items():
        gaps = np.concatenate([np.abs(a - b) for a, b in zip(found, truth, strict=True)])
        ties = sum(len(set(each.tolist())) < len(each) for each in found)
        other = sum(int(a.argmax() != b.argmax()) for a, b in zip(found, truth, strict=True))
        about = {"items with ties": ties, "other predictions": other}
        errors = {"largest error, nats": round(float(gaps.max()), 6), "median error": round(float(np.median(gaps)), 6)}
        print(json.dumps({"head": name, "items": len(found), **about, **errors}))


if __name__ == "__main__":
    main()
