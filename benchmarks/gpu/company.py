"""Section `company`: do a coalition's numbers depend on how many others are computed with it?

A product of few rows may be computed by another kernel than one of many, which adds in another order. Two questions:
how far log-likelihoods of one coalition alone are from those in company; and at which numbers of rows a product of the
engine's shapes gives the same bits, and what rows padded to a few fixed sizes would cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu.setting import Case, Result, Setting, all_windows, frame, random_items, random_model
from lowmem_layers.engine import ready_engine
from lowmem_layers.forecast.machine import rate_of

_ROWS = (1, 16, 64, 128, 256, 512, 1000, 1024, 2048, 4000, 4096, 8192, 16000, 16384)


def cases(setting: Setting) -> Iterator[Case]:
    """List both questions."""
    yield "products by rows", lambda: _products(setting)
    for task in ("boolq", "arc"):
        yield f"a coalition alone, {task}", lambda task=task: _alone(setting, task)


def _alone(setting: Setting, task: str) -> Result:
    """Score two items under all coalitions, and under a few of them alone."""
    model = random_model(setting, "llama-3-8b", "device", n_layers=8)
    coalitions, items = all_windows(model, setting), random_items(task, 2, model.shape.vocabulary)
    engine = ready_engine(model, layout="trie", budget_bytes=4 << 30)
    together = engine.score(items, coalitions)
    gaps = []
    for place in np.linspace(0, len(coalitions) - 1, 3 if setting.tiny else 12).astype(int):
        alone = engine.score(items, [coalitions[place]])
        gaps.append(max(float(np.abs(a[0] - b[place]).max()) for a, b in zip(alone, together, strict=True)))
    size = float(np.median([np.abs(each).max() for each in together]))
    return {"largest gap, nats": max(gaps), "median gap": float(np.median(gaps)), "typical log-likelihood": size,
            "equal to the bit": sum(each == 0.0 for each in gaps), "coalitions": len(gaps)}  # fmt: skip


def _products(setting: Setting) -> Result:
    """Compare the first rows of products of more and more rows with the largest, and time each."""
    made = frame(setting.config("llama-3-8b"), "nf4", setting.dtype)
    found: Result = {}
    rows = _ROWS[:5] if setting.tiny else _ROWS
    for columns, inner in sorted({place.shape for place in made.places if place.layer == 0}):
        states = torch.randn(rows[-1], inner, dtype=setting.dtype, device=setting.device)
        weight = torch.randn(columns, inner, dtype=setting.dtype, device=setting.device)
        whole = torch.nn.functional.linear(states, weight)
        same, micros = [], {}
        for n in rows:
            part = torch.nn.functional.linear(states[:n], weight)
            if torch.equal(part, whole[:n]):
                same.append(n)
            rate = rate_of(lambda n=n, s=states, w=weight: torch.nn.functional.linear(s[:n], w), setting.device, 0.02)
            micros[n] = 1e6 / rate
        found[f"{inner} × {columns}"] = {"rows with the same bits": same, "microseconds": micros}
    return found
