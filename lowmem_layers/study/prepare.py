"""Putting a model, its tasks and the engine together; bad input is refused here, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_layers.model.change import parse_change
from lowmem_layers.model.spec import ModelSpec
from lowmem_layers.record.manifest import EngineRecord
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.events import (
    Announce,
    LayerRead,
    MachineMeasured,
    ModelExamined,
    ModelPlaced,
    Noted,
    StageStarted,
    TasksRead,
)
from lowmem_layers.tasks.items import EncodedItem, Task

if TYPE_CHECKING:
    from lowmem_layers.engine.changes import Changes
    from lowmem_layers.engine.engine import Engine
    from lowmem_layers.engine.sweep import Sizes
    from lowmem_layers.model.anatomy.decoder import DecoderModel
    from lowmem_layers.model.load import Inspection
    from lowmem_layers.model.placement import Placement

Measure = Callable[[Any, Any], float]  # of a torch.device and a torch.dtype: multiply-adds a second


def prepare_study(
    spec: Specification,
    announce: Announce,
    earlier: EngineRecord | None = None,
    *,
    tasks: Sequence[Task] | None = None,
    free_cpu_memory: int | None = None,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Prepared:
    """Read the tasks, look at the model, encode the items, see that all of it will fit, load the model, examine it.

    `earlier` began this run: its chunk sizes are used again. `tasks` are those that another process has read. What
    `measure` finds of bare matrix products on the model's device is announced. `ModelSpec` tells of `free_cpu_memory`.

    Raises:
        LowmemLayersError: the tasks, the model or the memory given are unusable.
    """
    # 1) the tasks
    announce(StageStarted("reading the tasks", "tasks"))
    tasks = read_tasks(spec) if tasks is None else tasks
    announce(TasksRead(tuple(task.name for task in tasks), tuple(len(task.items) for task in tasks)))
    announce(StageStarted("importing torch", "libraries"))
    from lowmem_layers.engine import Engine, Sizes
    from lowmem_layers.model.devices import use_threads
    from lowmem_layers.model.load import fill_model, inspect_model
    from lowmem_layers.tasks import encode_tasks

    threads = use_threads(spec.threads)
    # 2) look: the model's headers and the items' tokens
    announce(StageStarted("looking at the model", "headers"))
    found = _with_room_for_change(spec, inspect_model(model_spec(spec, free_cpu_memory)), announce)
    announce(StageStarted("encoding the items", "items"))
    limits = {"max_length": found.max_length, "n_known": found.shape.vocabulary}
    encoded = encode_tasks(tasks, found.tokenizer, bos=spec.bos, **limits)
    # 3) decide: where the weights live, and what that leaves for the states
    planned, sizes = (Sizes.of(earlier.sizes), Sizes.of(earlier.sizes_now)) if earlier is not None else (None, None)
    placement = place_weights(spec, found, encoded, sizes)
    # 4) do: read the weights, and see whether the model can be believed
    announce(_placed(found, placement))
    announce(StageStarted("reading the weights", "weights"))
    model = fill_model(found, placement, lambda line: announce(Noted(line)), lambda *of: announce(LayerRead(*of)))
    changes = _changes(spec, model, encoded, placement)
    budget_bytes = placement.states_bytes
    engine = Engine(model, budget_bytes=budget_bytes, sizes=planned, narrowed_to=sizes, changes=changes)
    _examine(engine, spec.change, announce, clock)
    if measure is not None:
        announce(MachineMeasured(measure(model.device, model.dtype)))
    without_texts = tuple(replace(task, items=(), shared_prefix="") for task in tasks)  # only tokens are needed now
    return Prepared(model.players, without_texts, encoded, engine, model.describe(), {"threads": threads})


def _examine(engine: Engine, change: str, announce: Announce, clock: Callable[[], float]) -> None:
    """Examine the engine's model, or believe what an earlier start found of the same weights and code.

    Raises:
        RemovalError: the model cannot be taken apart exactly.
    """
    from lowmem_layers.study.kept_verdict import keep_verdict, kept_verdict

    announce(StageStarted("examining the model", "examination"))
    start, kept = clock(), kept_verdict(engine, change)
    verdict = engine.examine(kept)
    if kept is None:
        keep_verdict(engine, change, verdict)
    elapsed_s = clock() - start
    announce(ModelExamined(verdict.takes_tries, verdict.reason, verdict.sweep_gap, elapsed_s, kept=kept is not None))


def _with_room_for_change(spec: Specification, found: Inspection, announce: Announce) -> Inspection:
    """See that a format can pack the sublayers that play, and count the room that their rounded weights take.

    Raises:
        ModelError: a weight's rows are no whole blocks of the format, or a sublayer has no linear weights.
    """
    from lowmem_layers.model.homes.rounding import check_rows

    into = parse_change(spec.change).format
    if into is None:
        return found
    design = plan_design(spec, found.shape.players)
    changed = [design.sublayers[position] for position in sorted({p for removed in design.removed for p in removed})]
    if said := check_rows(found.places, {(player.layer, player.role) for player in changed}, into):
        announce(Noted(said))
    return replace(found, shape=found.shape.with_rounding(into.most_bits))


def _changes(spec: Specification, model: DecoderModel, encoded: Sequence[EncodedItem], placed: Placement) -> Changes:
    """Give what becomes of every sublayer; what stands for a branch's output is measured on the run's own items."""
    from lowmem_layers.engine.changes import Changes
    from lowmem_layers.engine.trunk import branch_means
    from lowmem_layers.model.homes.rounding import Shelf

    change, means = parse_change(spec.change), None
    if change.kind == "mean":
        model.examine()
        means = branch_means(model, encoded, placed.states_bytes)
    return Changes.alike(len(model.players), change, means, Shelf(placed.shelf_bytes))


def _placed(found: Inspection, placement: Placement) -> ModelPlaced:
    """Say what runs, where, and within which memory."""
    from lowmem_layers.model.devices import dtype_name
    from lowmem_layers.model.load import memory_limits

    limits, device = memory_limits(found), found.device.type
    return ModelPlaced(
        found.source.name,
        found.packing.label,
        placement.home,
        device,
        dtype_name(found.dtype),
        limits.cpu,
        limits.gpu if limits.on_gpu else None,
    )


def place_weights(
    spec: Specification, found: Inspection, encoded: Sequence[EncodedItem], sizes: Sizes | None = None
) -> Placement:
    """Choose where the weights live, so that the engine has enough for the largest item and a chunk of these sizes.

    Raises:
        UsageError: the model's players do not allow what the options ask for.
        BudgetError: the model, or the states of the largest item beside it, do not fit the memory given.
    """
    from lowmem_layers.engine.budget import check_largest, largest_item_bytes, needed_room
    from lowmem_layers.engine.examination import verified_length
    from lowmem_layers.game.players.tree import prefix_tree
    from lowmem_layers.model.anatomy.dissection import text_config
    from lowmem_layers.model.load import choose_place

    # How far removal orders are walked is settled later. They may be cut to single removals: no more is asked for here.
    design = plan_design(spec, found.shape.players)
    tree = prefix_tree(design.cut([0] * len(design.orders)).removed, len(found.shape.players))
    deepest = verified_length(text_config(found.module), found.max_length)
    largest = largest_item_bytes(encoded, found.shape, tree, deepest)
    placement = choose_place(found, needed_room(found.shape, found.device, largest, sizes))
    check_largest(found.shape, found.device, largest, placement.states_bytes, sizes)
    return placement


def read_tasks(spec: Specification) -> list[Task]:
    """Load the tasks of a specification.

    Raises:
        TaskError: a task or its data is unusable.
        UsageError: a task's own metric, or the value that importance is measured by, needs what its items lack.
    """
    from lowmem_layers.tasks import load_tasks
    from lowmem_layers.tasks.metrics import check_allowed, metric_named

    tasks = load_tasks(
        spec.tasks,
        data_dir=Path(spec.data_dir) if spec.data_dir else None,
        limit=spec.limit,
        fewshot=spec.fewshot,
        fewshot_file=Path(spec.fewshot_file) if spec.fewshot_file else None,
        window=spec.window,
        stride=spec.stride,
        chat_template=spec.chat_template,
        include_path=Path(spec.include_path) if spec.include_path else None,
        trust_task_code=spec.trust_task_code,
    )
    for task in tasks:
        has_choices = all(len(item.continuations) > 1 for item in task.items)
        for name in filter(None, (task.metric, spec.value)):
            check_allowed(metric_named(name), has_choices, all(item.asks_likeliest for item in task.items), task.name)
    return tasks


def model_spec(spec: Specification, free_cpu_memory: int | None = None) -> ModelSpec:
    """Take from a specification what loading a model asks for. Units: bytes."""
    return ModelSpec(
        model=spec.model,
        quant=spec.quant,
        dtype=spec.dtype,
        device=spec.device,
        offload=spec.offload,
        max_gpu_memory=spec.max_gpu_memory,
        max_cpu_memory=spec.max_cpu_memory,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        requantize=spec.requantize,
        cache=spec.cache,
        free_cpu_memory=free_cpu_memory,
    )
