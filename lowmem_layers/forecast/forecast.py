"""What a run would take, without loading a weight: the model's shape, the tasks' tokens, the machine's speed.

Placement, tiles and bytes are those of the run itself, by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.engine.budget import Widths
from lowmem_layers.engine.examination import verified_length
from lowmem_layers.engine.trie import lay_out
from lowmem_layers.errors import TaskError
from lowmem_layers.forecast.machine import CARDS, SHEET_SHARES, Machine, measure_machine, named_card
from lowmem_layers.forecast.memory import Limits, Memory, Tokens, forecast_memory
from lowmem_layers.forecast.several import WorkersForecast, forecast_workers
from lowmem_layers.forecast.speed import measure_speed
from lowmem_layers.forecast.work import WorkForecast, forecast_work, moved_bytes, rates_of
from lowmem_layers.game.players.tree import prefix_tree
from lowmem_layers.model.accelerators import check_offload
from lowmem_layers.model.anatomy.decoder import longest_input
from lowmem_layers.model.change import parse_change
from lowmem_layers.model.checkpoint.hub import hub_asked_once
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.model.checkpoint.texts import read_tokenizer
from lowmem_layers.model.devices import resolve_device, resolve_dtype, use_threads
from lowmem_layers.model.load import inspect_model
from lowmem_layers.model.memory import resident_bytes
from lowmem_layers.model.shape import SHIPPED, ModelShape, shape_of, shipped_config
from lowmem_layers.model.spec import EMBEDDED_MODEL, ModelSpec
from lowmem_layers.record.spec import Specification, StudySpec, one_of
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.prepare import model_spec, read_tasks
from lowmem_layers.tasks import encode_tasks
from lowmem_layers.tasks.encode import Bos
from lowmem_layers.tasks.items import Task
from lowmem_layers.workers.hiring import usual_threads

_TARGETS = {"none": "none", "4bit": "nf4", "8bit": "int8"}
_LONGEST = 2048
# Tokens of the six benchmarks as tries, and how many are scored, where their data are not at hand: counted with a
# vocabulary of 49,152 (benchmarks/engine_tokens.py), and scaled from the items counted to the items asked for.
_COUNTED = {
    "boolq": (1607, 236_489, 1_608),
    "arc_easy": (570, 22_074, 7_098),
    "arc_challenge": (299, 14_071, 5_040),
    "piqa": (924, 44_751, 33_189),
    "winogrande": (625, 15_992, 6_726),
    "openbookqa": (500, 10_382, 5_093),
}
_SPLITS = {"boolq": 3270, "arc_easy": 2376, "arc_challenge": 1172, "piqa": 1838, "winogrande": 1267, "openbookqa": 500}


@dataclass(frozen=True)
class Subject:
    """The model that a forecast is about. `whose` tokenizer counts its tokens. Units: `max_length` in tokens.

    `n_known` is the number of tokens that the model knows; None where the tokenizer is not the model's own.
    """

    shape: ModelShape
    config: Any
    tokenizer: Any
    whose: str
    max_length: int
    n_known: int | None
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Forecast:
    """A run before it is run. `speed` says what the hours are based on; with workers, they are those of one."""

    model: str
    shape: ModelShape
    work: WorkForecast
    machine: Machine
    memory: Memory
    tokens: Tokens
    speed: str
    workers: WorkersForecast | None = None


def forecast_study(spec: StudySpec | Specification, card: str | None = None, n_workers: int | None = None) -> Forecast:
    """Forecast a run on a graphics card that `card` names, or on this machine, without reading a weight.

    With several workers each has such a card; on this machine they share its memory and, without cards, its threads.

    Raises:
        LowmemLayersError: the model, the tasks or the card are unknown, or the model does not fit the memory given.
    """
    one_of("--for", card, tuple(CARDS))
    resolved = spec.resolved()
    if card is not None:
        resolved = replace(resolved, device="cpu", dtype="bfloat16" if resolved.dtype == "auto" else resolved.dtype)
    use_threads(resolved.threads or (None if n_workers is None else usual_threads(n_workers)))
    # 1) the tasks first, as in a run: their data are part of the process whose size is measured
    with hub_asked_once():
        tasks = tasks_at_hand(resolved)
        subject = look_at(model_spec(resolved))
    tokens = remembered_tokens(resolved) if tasks is None else count_tokens(tasks, subject, resolved.bos)
    coalitions = tuple(plan_design(resolved, subject.shape.players).removed)
    change = parse_change(resolved.change)
    tree = prefix_tree(coalitions, len(subject.shape.players), [change.passes] * len(subject.shape.players))
    shape = subject.shape if change.format is None else subject.shape.with_rounding(change.format.most_bits)
    # 2) memory, and the tiles that it makes
    request, device = model_spec(resolved), subject.device
    machine = named_card(card) if card else measure_machine(device, subject.dtype)
    limits = Limits(request.offload, request.max_gpu_memory, request.max_cpu_memory, n_workers or 1)
    memory = forecast_memory(shape, limits, machine, tree, tokens)
    # 3) time, by this engine's own speed on one layer of the model where this machine is meant
    target = _TARGETS[request.quant]
    rates, basis = rates_of(machine, memory.home, target), f"the card's data sheet: {SHEET_SHARES}"
    if card is None:
        usual = round(sum(t * t for t in tokens.trunk) / max(1, sum(tokens.trunk)))  # where the most tokens are
        length = min(max(1, usual), _LONGEST)
        speed = measure_speed(subject.config, target, device, subject.dtype, length)
        basis = "bare matrix products and copies: a decoder layer is too large to be timed for this"
        if speed is not None:
            rates = replace(rates, layer_macs_s=speed.layer_macs_s, head_macs_s=speed.head_macs_s)
            rates = replace(rates, unpacked_s=speed.unpacked_s, moved_bytes_s=float("inf"))
            basis = f"one decoder layer and a head of this shape, timed: {2 * rates.layer_macs_s / 1e12:.3g} TFLOP/s"
    moved = moved_bytes(subject.shape, tree, sum(tokens.trunk), sum(tokens.scored))
    cost = Widths.of(subject.shape).count(sum(tokens.trunk), sum(tokens.scored), 0, tree)
    work = forecast_work(subject.shape, coalitions, tree, cost, memory.n_tiles, rates, moved)
    weights = subject.shape.n_bytes.packed + subject.shape.n_bytes.resident
    workers = None if n_workers is None else forecast_workers(n_workers, work, memory, machine, weights)
    return Forecast(request.model, subject.shape, work, machine, memory, tokens, basis, workers)


def look_at(request: ModelSpec) -> Subject:
    """Look at a model as a run would. A shipped shape has no files: the embedded model's tokenizer counts its tokens.

    Raises:
        ModelError: the model cannot be found, or is not a decoder-only language model.
    """
    if request.model not in SHIPPED or Path(request.model).exists():
        found = inspect_model(request)
        own = (found.tokenizer, found.source.name, found.max_length, found.shape.vocabulary)
        return Subject(found.shape, found.config, *own, found.device, found.dtype)
    device = resolve_device(request.device)
    check_offload(device, request.offload)
    dtype = resolve_dtype(request.dtype, device)
    embedded = replace(request, model=EMBEDDED_MODEL)
    tokenizer, config = read_tokenizer(find_source(embedded), embedded), shipped_config(request.model)
    shape = shape_of(config, _TARGETS[request.quant], dtype, process_bytes=resident_bytes())
    longest = longest_input(config.get_text_config(decoder=True), tokenizer)
    return Subject(shape, config, tokenizer, EMBEDDED_MODEL, longest, None, device, dtype)


def tasks_at_hand(spec: Specification) -> list[Task] | None:
    """Read the tasks. Return None where data cannot be read, but are benchmarks' whose tokens were counted once.

    Raises:
        TaskError: a task's data are unusable, or are not at hand and were never counted.
    """
    try:
        return read_tasks(spec)
    except TaskError:
        if spec.data_dir is not None or spec.fewshot or spec.chat_template or not set(spec.tasks) <= set(_COUNTED):
            raise
        return None


def count_tokens(tasks: Sequence[Task], subject: Subject, bos: Bos) -> Tokens:
    """Lay each item out as the engine would for a model that takes tries, and count.

    Raises:
        TaskError: an item cannot be encoded, or has a token that the model does not know.
    """
    deepest = verified_length(subject.config.get_text_config(decoder=True), subject.max_length)
    limits = {"max_length": subject.max_length, "n_known": subject.n_known}
    items = encode_tasks(tasks, subject.tokenizer, bos=bos, **limits)
    laid_out = [lay_out([item], float, deepest) for item in items]
    return Tokens(
        trunk=tuple(sum(map(len, rows)) for rows in laid_out),
        scored=tuple(sum(len(row.scored_nodes) for row in rows) for rows in laid_out),
        squares=tuple(sum(len(row) ** 2 for row in rows) for rows in laid_out),
        whose=f"counted with the tokenizer of {subject.whose}",
        n_cut=sum(any(choice.n_cut for choice in item.choices) for item in items),
    )


def remembered_tokens(spec: Specification) -> Tokens:
    """Take the average of an earlier count for every item of a benchmark."""
    trunk: list[int] = []
    scored: list[int] = []
    for task in spec.tasks:
        counted, tokens, positions = _COUNTED[task]
        n_items = min(spec.limit or _SPLITS[task], _SPLITS[task])
        trunk += [round(tokens / counted)] * n_items
        scored += [round(positions / counted)] * n_items
    whose = f"the data are not at hand: averages of earlier counts with {EMBEDDED_MODEL}'s tokenizer"
    return Tokens(tuple(trunk), tuple(scored), tuple(length**2 for length in trunk), whose)
