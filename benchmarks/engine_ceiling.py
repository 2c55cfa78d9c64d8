"""Which share of the engine's time do the bare matrix products take?

The ceiling is the time of the products of weights and states that no sweep can do without. Each distinct shape is timed
bare, in the same process, between two of the engine's tiles. The shapes are those of the engine's own chunks, recorded
when they are dispatched; products at padded positions are subtracted. Attention's own products (scores, weighted
values) do not count as products. The last line is one JSON document.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.setting import all_windows, finish, parser, real_items, start
from lowmem_layers.engine import Engine, ready_engine
from lowmem_layers.engine.batches import make_batches

aten = torch.ops.aten


class SeeProducts(TorchDispatchMode):
    """Counts the matrix products by shape (rows, inner, columns)."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.linear.default:
            states, weight = args[:2]
            self.shapes[states.numel() // states.shape[-1], states.shape[-1], weight.shape[0]] += 1
        elif func in (aten.mm.default, aten.addmm.default):
            a, b = args[-2:]
            self.shapes[a.shape[0], a.shape[1], b.shape[1]] += 1
        return func(*args, **(kwargs or {}))


def bare_seconds(shapes: Counter[tuple[int, int, int]], dtype: torch.dtype, device: str, repeats: int) -> float:
    """Time each distinct product, and add up the times as often as each is made; weights are laid out as in a layer.

    The time of a product is the median of its repeats, because the engine's own time has the machine's usual noise too.
    """
    total = 0.0
    for (rows, inner, columns), count in shapes.items():
        weight = torch.randn(columns, inner, dtype=dtype, device=device)
        states = torch.randn(rows, inner, dtype=dtype, device=device)
        product = partial(torch.nn.functional.linear, states, weight)
        product()
        total += count * statistics.median(timed(product, device) for _ in range(repeats))
    return total


def timed(work: Any, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def padding_share(engine: Engine, items: Sequence[Any]) -> float:
    """Compute the share of padding among the positions of the engine's own batches."""
    batches = make_batches(engine._rows(items), engine.sizes.chunk_tokens // 8)
    padded = sum(batch.n_nodes * len(batch.rows) for batch in batches)
    return 1 - sum(batch.n_tokens for batch in batches) / padded


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    model = start(options)
    items, coalitions = real_items(model, options), all_windows(model, options)
    engine = ready_engine(model)
    with SeeProducts() as seen:
        engine.score(items, coalitions)
    if not seen.shapes:
        raise SystemExit("no matrix product was seen as it was dispatched")
    flops = 2 * sum(r * i * c * n for (r, i, c), n in seen.shapes.items())
    padding = padding_share(engine, items)
    shares = []
    for _ in range(options.rounds):
        before = bare_seconds(seen.shapes, model.dtype, options.device, 5)
        ours = timed(lambda: engine.score(items, coalitions), options.device)
        after = bare_seconds(seen.shapes, model.dtype, options.device, 5)
        bare = (before + after) / 2 * (1 - padding)
        shares.append(bare / ours)
        print(
            f"bare products {bare:6.1f} s ({flops / bare / 1e9:,.0f} GFLOP/s), ours {ours:6.1f} s "
            f"({flops / ours / 1e9:,.0f} GFLOP/s): {100 * bare / ours:.1f} %"
        )
    result = {"benchmark": "engine_ceiling", "share": sorted(shares)[len(shares) // 2], "shares": shares}
    finish({**result, "product_flops": flops, "padding_share": padding, "distinct_shapes": len(seen.shapes)}, options)


if __name__ == "__main__":
    main()
