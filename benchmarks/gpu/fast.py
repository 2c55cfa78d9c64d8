"""Section `fast`: one full tile of each model, as a share of what bare products reach, and where the rest goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.fused import compare
from benchmarks.gpu.parts import Parts, kernels, synchronisations
from benchmarks.gpu.setting import Case, Result, Setting, all_windows, random_items, random_model
from lowmem_layers.engine import Engine, ready_engine
from lowmem_layers.forecast.machine import measure_products, wait_and_read_clock
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.homes.store import StreamingStore, Visit
from lowmem_layers.tasks.items import EncodedItem

HOMES = {"llama-3-8b": "device", "llama-3-70b": "cpu", "mixtral-8x7b": "device"}
_TILE_SHARE = 0.07  # of the section's time
_CHUNKS = (2048, 4096, 8192, 16384, 32768)


def cases(setting: Setting) -> Iterator[Case]:
    """List what is timed: the smallest model and its parts first, then the larger ones."""
    seconds = max(0.05, _TILE_SHARE * setting.left_s())
    macs_s = measure_products(setting.device, setting.dtype, seconds=0.05 if setting.tiny else 0.5)
    work = (10**8 if setting.tiny else 5 * 10**15) if seconds > 60 else int(0.5 * macs_s * seconds)
    work = min(work, 10**9) if setting.tiny else work
    open_models: dict[str, DecoderModel] = {}

    def model(name: str) -> DecoderModel:
        if name not in open_models:
            open_models.clear()
            open_models[name] = random_model(setting, name, HOMES[name])
        return open_models[name]

    small, mixture, large = "llama-3-8b", "mixtral-8x7b", "llama-3-70b"
    yield f"{small} start", lambda: start(setting, model(small))  # first: later cases find its layers examined
    yield f"{small} boolq", lambda: tile(setting, model(small), "boolq", work, macs_s)
    yield f"{small} parts", lambda: parts(setting, model(small), work // 4)
    yield f"{small} chunk sizes", lambda: chunk_sizes(setting, model(small), work // 8)
    for task in ("piqa", "arc"):
        yield f"{small} {task}", lambda task=task: tile(setting, model(small), task, work, macs_s)
    yield f"{small} kernels", lambda: _kernels(setting, model(small), work // 32)
    for name in (large, mixture):
        yield f"{name} start", lambda name=name: start(setting, model(name))
        yield f"{name} boolq", lambda name=name: tile(setting, model(name), "boolq", 2 * work, macs_s)
    for name in (mixture, large):
        yield f"{name} parts", lambda name=name: parts(setting, model(name), work // 2)
    yield f"{small} fused", lambda: _fused(setting, model(small), work // 8)  # last: compiling takes its time
    open_models.clear()


def filled_tile(
    engine: Engine, model: DecoderModel, task: str, work: int, setting: Setting
) -> tuple[list[EncodedItem], Sequence[Any]]:
    """Choose as many items of a task's lengths as make `work`, or as fit the memory."""
    coalitions = all_windows(model, setting)
    one = engine.work(random_items(task, 1, model.shape.vocabulary), coalitions)
    items = random_items(task, max(1, min(512, work // one)), model.shape.vocabulary)
    engine.tile_work = max(work, 2 * one)
    (first, *_) = engine.plan_tiles(items, coalitions)
    return [items[i] for i in first], coalitions


def timed_tile(setting: Setting, engine: Engine, items: list[EncodedItem], coalitions: Sequence[Any]) -> float:
    """Score one tile. Units: seconds."""
    start = wait_and_read_clock(setting.device)
    engine.score(items, coalitions)
    return wait_and_read_clock(setting.device) - start


def tile(setting: Setting, model: DecoderModel, task: str, work: int, macs_s: float) -> Result:
    """Time one full tile, after a small one to warm up."""
    engine = ready_engine(model, layout="trie")
    few, coalitions = filled_tile(engine, model, task, work // 16, setting)
    engine.score(few[:1], coalitions[:8])
    items, coalitions = filled_tile(engine, model, task, work, setting)
    seconds = timed_tile(setting, engine, items, coalitions)
    done = engine.work(items, coalitions)
    cost = engine.costs(items, coalitions)
    return {
        "seconds_of_tile": seconds,
        "items": len(items),
        "tokens": sum(len(row) for row in engine._rows(items)),
        "scored": sum(len(row.scored_nodes) for row in engine._rows(items)),
        "coalitions": len(coalitions),
        "multiply_adds": done,
        "head_multiply_adds": sum(each.head_work for each in cost),
        "tflops": 2 * done / seconds / 1e12,
        "share_of_products": done / seconds / macs_s,
        "home": model.store.describe()["home"],
        "packed_bytes": model.store.describe()["packed_bytes"],
        "sizes": str(engine.sizes),
        "narrowed": len(engine.narrowed),
    }


def start(setting: Setting, model: DecoderModel) -> Result:
    """Time the examination of a model whose packed weights are at home, and its first scores; count its passes."""
    coalitions, items = all_windows(model, setting), random_items("boolq", 1, model.shape.vocabulary)
    passes, sweep = [0], StreamingStore.sweep

    def counted(store: StreamingStore, visits: Sequence[Visit]) -> Iterator[Visit]:
        passes[0] += 1
        return sweep(store, visits)

    with mock.patch.object(StreamingStore, "sweep", counted):
        begin = wait_and_read_clock(setting.device)
        engine = ready_engine(model)
        examined, passes_before = wait_and_read_clock(setting.device), passes[0]
        engine.plan_tiles(items, coalitions)
        engine.score(items, coalitions[:8])
        first = wait_and_read_clock(setting.device)
    return {
        "seconds_of_examination": examined - begin,
        "passes of the examination": passes_before,
        "seconds_of_first_scores": first - examined,
        "layout": engine.layout,
        "home": model.store.describe()["home"],
        "packed_bytes": model.store.describe()["packed_bytes"],
    }


def parts(setting: Setting, model: DecoderModel, work: int) -> Result:
    """Split a tile's time into its parts, and count how often the host waits."""
    engine = ready_engine(model, layout="trie")
    items, coalitions = filled_tile(engine, model, "boolq", work, setting)
    plain = timed_tile(setting, engine, items, coalitions)
    watched = Parts(setting.device)
    with watched.watching():
        seconds = timed_tile(setting, engine, items, coalitions)
    found = watched.seconds()
    waits = synchronisations(lambda: engine.score(items[:1], coalitions), setting.device)
    return {
        "seconds_of_tile": plain,
        "watched": seconds,
        **found,
        "gaps and copies": seconds - sum(found.values()),
        "synchronisations of a one-item tile": waits,
        "batches": len(engine._batches(items, engine._tree(coalitions))),
    }


def chunk_sizes(setting: Setting, model: DecoderModel, work: int) -> Result:
    """Time the same tile in chunks of several sizes; the fastest may suit the card better than the usual one."""
    usual = ready_engine(model, layout="trie")
    items, coalitions = filled_tile(usual, model, "boolq", work, setting)
    done, found = usual.work(items, coalitions), {}
    for tokens in _CHUNKS[:2] if setting.tiny else _CHUNKS:
        engine = ready_engine(model, layout="trie", sizes=replace(usual.sizes, chunk_tokens=tokens))
        seconds = [timed_tile(setting, engine, items, coalitions) for _ in range(2)]
        found[f"{tokens} tokens, TFLOP/s"] = 2 * done / min(seconds) / 1e12
    for rows in {usual.sizes.head_rows // 4, usual.sizes.head_rows // 2, usual.sizes.head_rows} - {0}:
        engine = ready_engine(model, layout="trie", sizes=replace(usual.sizes, head_rows=rows))
        found[f"{rows} rows of logits, TFLOP/s"] = 2 * done / timed_tile(setting, engine, items, coalitions) / 1e12
    return found


def _fused(setting: Setting, model: DecoderModel, work: int) -> Result:
    engine = ready_engine(model, layout="trie")
    items, coalitions = filled_tile(engine, model, "boolq", work, setting)

    def score() -> tuple[float, list[np.ndarray]]:
        begin = wait_and_read_clock(setting.device)
        scores = engine.score(items, coalitions)
        return wait_and_read_clock(setting.device) - begin, scores

    return compare(model, score)


def _kernels(setting: Setting, model: DecoderModel, work: int) -> Result:
    engine = ready_engine(model, layout="trie")
    items, coalitions = filled_tile(engine, model, "boolq", work, setting)
    return kernels(lambda: engine.score(items, coalitions), torch.device(setting.device))
