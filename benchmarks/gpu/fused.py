"""Case `fused`: a tile with compiled elementwise parts (norm, rotary embedding, SwiGLU) and without, in turns."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.setting import Result
from lowmem_layers.model.anatomy.decoder import DecoderModel

_ROUNDS = 3


@contextmanager
def fused(model: DecoderModel) -> Iterator[dict[str, int]]:
    """Compile a Llama-like model's elementwise parts for the length of a `with` block; give how many there are.

    The matrix products stay as they are: weights move from slot to slot, and compiled code would be made anew for each.
    """
    compiled: Callable[..., Any] = torch.compile(lambda gate, up: torch.nn.functional.silu(gate) * up, dynamic=True)
    counts = {"norms": 0, "feed-forwards": 0, "rotary embeddings": 0}
    with ExitStack() as stack:
        for module in model.module.modules():
            if type(module).__name__.endswith("RMSNorm"):
                part = torch.compile(module.forward, dynamic=True)
                counts["norms"] += 1
            elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
                part = _feed_forward(module, compiled)
                counts["feed-forwards"] += 1
            else:
                continue
            stack.enter_context(mock.patch.object(module, "forward", part))
        family = importlib.import_module(type(model.module).__module__)
        rotary: Callable[..., Any] = torch.compile(family.apply_rotary_pos_emb, dynamic=True)
        stack.enter_context(mock.patch.object(family, "apply_rotary_pos_emb", rotary))
        counts["rotary embeddings"] += 1
        yield counts


def _feed_forward(module: Any, gated: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))


def _all_compiled() -> AbstractContextManager[None]:
    """Let a part that torch would run uncompiled, since it was compiled too often, be an error."""
    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


def compare(model: DecoderModel, score: Callable[[], tuple[float, Sequence[np.ndarray]]]) -> Result:
    """Time a tile plain and fused, in turns, behind one of each to compile. `score` gives seconds and scores.

    torch's warnings about its own parts are not shown. On a CPU torch.compile needs a C++ compiler, on CUDA triton;
    where one is missing, the case is skipped.
    """
    plain_s, fused_s, gaps, counts = [], [], [], dict[str, int]()
    for _ in range(_ROUNDS):
        seconds, plain = score()
        plain_s.append(seconds)
        try:
            with warnings.catch_warnings(action="ignore"), _all_compiled(), fused(model) as counts:
                score()  # compiles at first, later finds what was compiled
                seconds, scores = score()
        except Exception as error:  # torch raises classes of its own for each missing tool
            if "compiler" not in str(error).lower() and "triton" not in str(error).lower():
                raise
            return {"skipped": f"torch.compile cannot compile here: {str(error).splitlines()[0][:150]}"}
        fused_s.append(seconds)
        gaps.append(max(float(np.abs(a - b).max()) for a, b in zip(plain, scores, strict=True)))
    return {
        "seconds_plain": min(plain_s), "seconds_fused": min(fused_s), "times as fast": min(plain_s) / min(fused_s),
        "largest gap, nats": max(gaps), **counts,
    }  # fmt: skip
