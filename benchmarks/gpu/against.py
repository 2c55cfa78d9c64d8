"""Section `against`: how long would it take otherwise? Ratios of the same tile, ours and theirs in turns.

Theirs is a whole forward pass of transformers for each coalition, rows sorted by length and padded, logits at the
scored positions alone, at its best batch size: with bitsandbytes' 4-bit layers resident on the card, and with
accelerate's offload of bfloat16 layers from RAM. A sample of coalitions is timed and scaled to all of them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.fast import filled_tile, timed_tile
from benchmarks.gpu.setting import Case, Result, Setting, frame, random_model, random_weight
from lowmem_layers.engine import ready_engine
from lowmem_layers.forecast.ceilings import random_nf4
from lowmem_layers.forecast.machine import measure_products, wait_and_read_clock
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.anatomy.removal import without
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.memory import available_device_bytes
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_OFFLOADED_LAYERS = 8


def cases(setting: Setting) -> Iterator[Case]:
    """List the comparisons."""
    yield "4-bit resident, boolq", lambda: _compare(setting, "boolq", four_bit_module(setting, "llama-3-8b"), None)
    yield "4-bit resident, arc", lambda: _compare(setting, "arc", four_bit_module(setting, "llama-3-8b"), None)
    layers = min(_OFFLOADED_LAYERS, setting.config("llama-3-8b").num_hidden_layers)
    about = f"accelerate's offload of bfloat16 layers, {layers} layers, boolq"
    yield about, lambda: _compare(setting, "boolq", offloaded_module(setting, "llama-3-8b", layers), layers)


def four_bit_module(setting: Setting, name: str) -> Any:
    """Build transformers' model with bitsandbytes' 4-bit layers, from random codes, as `load_in_4bit` leaves it."""
    import bitsandbytes

    library: Any = bitsandbytes  # what its stubs do not say: arguments of `Params4bit.__new__`
    made = frame(setting.config(name), "nf4", setting.dtype)
    with torch.inference_mode(False), torch.no_grad():
        for place in made.places:
            if not is_quantised(place):
                raise ValueError(f"{place.key} is not quantised")
            rows, columns = place.shape
            packed = random_nf4(place.shape, setting.device)
            layer = library.nn.Linear4bit(
                columns, rows, bias=False, compute_dtype=setting.dtype, quant_type="nf4", device="meta"
            )
            state = library.functional.QuantState(
                packed.parts["absmax"], shape=torch.Size(place.shape), code=packed.parts["quant_map"],
                blocksize=64, quant_type="nf4", dtype=setting.dtype,
            )  # fmt: skip
            layer.weight = library.nn.Params4bit(
                packed.parts["weight"], requires_grad=False, quant_state=state, blocksize=64,
                compress_statistics=False, quant_type="nf4", bnb_quantized=True, module=layer,
            )  # fmt: skip
            layer.quant_state = state
            layer.support_avx512bf16_for_cpu = False
            parent, _, child = place.key.removesuffix(".weight").rpartition(".")
            setattr(made.module.get_submodule(parent), child, layer)
        _fill_rest(made.module, setting)
    return made.module


def offloaded_module(setting: Setting, name: str, n_layers: int) -> Any:
    """Build transformers' bfloat16 model with its weights in RAM, brought in by accelerate layer by layer."""
    from accelerate import cpu_offload

    made = frame(setting.config(name, n_layers), "none", setting.dtype)
    with torch.inference_mode(False), torch.no_grad():
        _fill_rest(made.module, setting, torch.device("cpu"))
        made.module.to("cpu")
        cpu_offload(made.module, setting.device)
    return made.module


def _fill_rest(module: Any, setting: Setting, device: torch.device | None = None) -> None:
    """Give every tensor that still has no memory random numbers."""
    for name, value in module.state_dict().items():
        if value.device.type == "meta":
            set_tensor(module, name, random_weight(value.shape, value.dtype, device or setting.device))
    module.tie_weights()
    for each in module.modules():
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = buffer.to(device or setting.device)


def whole_forwards(module: nn.Module, items: Sequence[EncodedItem], batch: int, device: torch.device) -> int:
    """Score every choice by whole forward passes. Return how many rows were computed."""
    rows = sorted((choice for item in items for choice in item.choices), key=lambda row: -len(row.tokens))
    for low in range(0, len(rows), batch):
        _forward(module, rows[low : low + batch], device)
    return len(rows)


def _forward(module: Any, rows: Sequence[EncodedChoice], device: torch.device) -> torch.Tensor:
    longest = max(len(row.tokens) - 1 for row in rows)
    ids, present = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for line, row in enumerate(rows):
        tokens = row.tokens[:-1]
        ids[line, -len(tokens) :] = torch.tensor(tokens)  # padded on the left, so that scored positions are last
        present[line, -len(tokens) :] = 1
    keep = max(row.n_scored for row in rows)
    given = {"input_ids": ids.to(device), "attention_mask": present.to(device)}
    logits = module(**given, use_cache=False, logits_to_keep=keep).logits  # (B, keep, V)
    return logits.log_softmax(-1, dtype=torch.float32).sum((1, 2)).cpu()


def _best_batch(module: Any, items: Sequence[EncodedItem], setting: Setting) -> tuple[int, dict[int, float]]:
    """Time batch sizes on the full model; stop where one is out of memory or clearly slower."""
    times: dict[int, float] = {}
    whole_forwards(module, items[:1], 1, setting.device)
    for batch in _BATCHES[:3] if setting.tiny else _BATCHES:
        try:
            start = wait_and_read_clock(setting.device)
            whole_forwards(module, items, batch, setting.device)
            times[batch] = wait_and_read_clock(setting.device) - start
        except torch.OutOfMemoryError:
            break
        if times[batch] > 1.3 * min(times.values()):
            break
    return min(times, key=lambda size: times[size]), times


def _compare(setting: Setting, task: str, module: Any, n_layers: int | None) -> Result:
    """Time ours and theirs on the same items, in turns."""
    anatomy = dissect(module)  # not examined: offloaded weights lie on no device between their uses
    ours = random_model(setting, "llama-3-8b", "device", n_layers=n_layers)
    budget = min(8 << 30, available_device_bytes(setting.device) // 2) if setting.is_gpu else None  # theirs needs some
    engine = ready_engine(ours, layout="trie", budget_bytes=budget)
    work = int(0.4 * measure_products(setting.device, setting.dtype, seconds=0.1) * max(0.5, setting.left_s() / 20))
    items, coalitions = filled_tile(engine, ours, task, 10**7 if setting.tiny else work, setting)
    batch, times = _best_batch(module, items[:32], setting)
    draw, seconds = random.Random(0), []
    our_seconds = [timed_tile(setting, engine, items, coalitions)]
    while not seconds or (setting.left_s() > 0 and len(seconds) < (2 if setting.tiny else 12)):
        with without(anatomy, draw.choice(coalitions)):
            start = wait_and_read_clock(setting.device)
            whole_forwards(module, items, batch, setting.device)
            seconds.append(wait_and_read_clock(setting.device) - start)
    our_seconds.append(timed_tile(setting, engine, items, coalitions))
    theirs = statistics.fmean(seconds) * len(coalitions)
    return {
        "items": len(items), "coalitions": len(coalitions), "ours_s": our_seconds, "theirs_s": theirs,
        "ratio": theirs / min(our_seconds), "batch": batch, "batches": times, "sample": len(seconds),
        "spread": statistics.pstdev(seconds) / statistics.fmean(seconds),
    }  # fmt: skip
