"""Section `memory`: does a run keep within the memory it is given, and does it take what was foreseen?

The allocator is capped by a fraction of the card's memory, and the placement is given the same limit, as
`--max-gpu-memory` does. Three tiles each. A run that narrows its chunks, or whose allocator tries again, is not right.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.fast import filled_tile
from benchmarks.gpu.setting import Case, Result, Setting, frame, random_model
from lowmem_layers.engine import ready_engine
from lowmem_layers.engine.budget import Widths, needed_room, tile_bytes
from lowmem_layers.errors import BudgetError
from lowmem_layers.forecast.machine import measure_products
from lowmem_layers.model.gpu import cap_allocator, device_overhead_bytes
from lowmem_layers.model.placement import limits_now, place_with_states

_GIB = 1 << 30
_CAPS = (("llama-3-8b", 6), ("mixtral-8x7b", 10), ("llama-3-70b", 8), ("llama-3-8b", 8), ("llama-3-8b", 12),
         ("llama-3-8b", 24), ("mixtral-8x7b", 24), ("llama-3-70b", 24))  # fmt: skip


def cases(setting: Setting) -> Iterator[Case]:
    """List the models and the caps, the tightest first."""
    for name, gib in _CAPS[:3] if setting.tiny else _CAPS:
        yield f"{name} in {gib} GiB", lambda name=name, gib=gib: _capped(setting, name, gib * _GIB)


def _capped(setting: Setting, name: str, cap: int) -> Result:
    """Score three tiles of a model under a cap, and compare the peak with what was foreseen."""
    made = frame(setting.config(name), "nf4", setting.dtype)
    overhead = device_overhead_bytes(setting.device)
    free = torch.cuda.mem_get_info(setting.device)[0] if setting.is_gpu else cap
    limits = limits_now(on_gpu=True, gpu=cap, cpu=None, free_gpu=free, free_cpu=1 << 50, context=overhead)
    item = 4 * 1024 * made.shape.hidden * made.shape.itemsize  # room for one short item; tiles take what is left
    placed = place_with_states(made.shape.n_bytes, "auto", limits, room=needed_room(made.shape, setting.device, item))
    cap_allocator(setting.device, cap)
    try:
        before: Result = {}
        if setting.is_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_stats()
        home = "cpu" if placed.home == "disk" else placed.home  # a slow disk would not change the card's memory
        model = random_model(setting, name, home, made=made, one_expert=placed.one_expert)
        engine = ready_engine(model, layout="trie", budget_bytes=placed.states_bytes)
        work = int(0.4 * measure_products(setting.device, setting.dtype, seconds=0.1) * min(4.0, setting.left_s() / 10))
        work = 10**7 if setting.tiny else work
        largest, too_large = 0, []
        for task in ("boolq", "piqa", "arc"):
            try:
                items, coalitions = filled_tile(engine, model, task, max(1, work), setting)
            except BudgetError as error:  # a run would have been refused before its weights were read
                too_large.append(f"{task}: {error.message}")
                continue
            engine.score(items, coalitions)
            largest = max(largest, tile_bytes(engine.costs(items, coalitions)))
        chunk = Widths.of(made.shape).chunk_bytes(engine.sizes)
        foreseen = placed.gpu_bytes - overhead + largest + chunk
        result: Result = {"cap": cap, "home": placed.home, "one_expert": placed.one_expert, "overhead": overhead,
                          "states_budget": placed.states_bytes, "largest_tile": largest, "chunk": chunk,
                          "foreseen_allocated": foreseen, "narrowed": len(engine.narrowed),
                          "items that do not fit": too_large}  # fmt: skip
        if setting.is_gpu:
            after = torch.cuda.memory_stats()
            result["allocated_peak"] = torch.cuda.max_memory_allocated()
            result["reserved_peak"] = torch.cuda.max_memory_reserved()
            result["process_now"] = torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]
            # kernels are loaded when they are first used: more than `overhead` means that too little was counted
            result["context_now"] = result["process_now"] - torch.cuda.memory_reserved()
            for each in ("num_alloc_retries", "num_ooms"):
                result[each] = after.get(each, 0) - before.get(each, 0)
            result["foreseen_to_measured"] = foreseen / result["allocated_peak"]
            within = result["reserved_peak"] + overhead <= cap and result["num_alloc_retries"] == 0
            result["right"] = within and not engine.narrowed
        return result
    finally:
        cap_allocator(setting.device, None)
