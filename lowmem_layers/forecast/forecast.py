"""What a run would take, without loading a weight: the model's shape, the tasks' tokens, the machine's speed.

Placement, tiles and bytes are those of the run itself, by the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_layers.forecast.machine import CARDS, Machine
from lowmem_layers.forecast.work import Rates, WorkPlan
from lowmem_layers.model.shape import SHIPPED, ModelShape
from lowmem_layers.model.spec import EMBEDDED_MODEL
from lowmem_layers.record.spec import Specification, StudySpec, one_of
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.prepare import model_spec, read_tasks

if TYPE_CHECKING:
    from lowmem_layers.forecast.memory import Memory

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
class Tokens:
    """What the tasks come to, an item an entry. Units: tokens of the item's trie, and how many of them are scored.

    `whose` says whose tokens, and where from.
    """

    trunk: tuple[int, ...]
    scored: tuple[int, ...]
    whose: str


@dataclass(frozen=True)
class StudyPlan:
    """A run before it is run. `speed` says what the hours are based on."""

    model: str
    shape: ModelShape
    work: WorkPlan
    machine: Machine
    memory: Memory
    tokens: Tokens
    speed: str


def plan_study(spec: StudySpec | Specification, card: str | None = None) -> StudyPlan:
    """Plan a run of a model by its config alone; `card` names a graphics card, None means this machine.

    Raises:
        LowmemLayersError: the model, the tasks or the card are unknown, or the model does not fit the memory given.
    """
    from lowmem_layers.forecast.machine import measure_machine, named_card
    from lowmem_layers.forecast.memory import Limits, foresee_memory
    from lowmem_layers.forecast.work import Workload, plan_work, rates_of
    from lowmem_layers.game.players.tree import prefix_tree
    from lowmem_layers.model.anatomy.decoder import longest_input
    from lowmem_layers.model.devices import resolve_device, resolve_dtype, use_threads

    one_of("--for", card, tuple(CARDS))
    resolved = spec.resolved()
    if card is not None:
        resolved = replace(resolved, device="cpu", dtype="bfloat16" if resolved.dtype == "auto" else resolved.dtype)
    use_threads(resolved.threads)
    device = resolve_device(resolved.device)
    dtype = resolve_dtype(resolved.dtype, device)
    shape, config, tokenizer, whose = _read(resolved, dtype)
    removed = tuple(plan_design(resolved, shape.players).removed)
    tree = prefix_tree(removed, len(shape.players))
    longest = longest_input(config.get_text_config(decoder=True), tokenizer)
    tokens = count_tokens(resolved, tokenizer, whose, longest)
    machine = named_card(card) if card else measure_machine(device, dtype)
    limits = Limits(resolved.offload, resolved.max_gpu_memory, resolved.max_cpu_memory)
    memory = foresee_memory(shape, limits, machine, dtype.itemsize, tree, tokens.trunk, tokens.scored)
    rates, speed = rates_of(machine, memory.home), "the card's data sheet, at 60 % of its peak"
    if card is None:
        rates, speed = _measured(rates, config, _TARGETS[resolved.quant], tokens, device, dtype)
    live = tuple(len(step.advanced) for step in tree.steps)
    naive = sum(len(shape.players) - len(each) for each in removed)
    load = Workload(live, tree.n_slots, naive, sum(tokens.trunk), sum(tokens.scored), memory.n_tiles)
    work = plan_work(shape, load, rates, itemsize=dtype.itemsize)
    return StudyPlan(resolved.model, shape, work, machine, memory, tokens, speed)


def _measured(rates: Rates, config: Any, target: str, tokens: Tokens, device: Any, dtype: Any) -> tuple[Rates, str]:
    """Take this engine's own speed on a layer of the model for that of all layers; say what was taken."""
    from lowmem_layers.forecast.speed import measure_speed

    usual = round(sum(t * t for t in tokens.trunk) / max(1, sum(tokens.trunk)))  # where the most tokens are
    speed = measure_speed(config, target, device, dtype, min(max(1, usual), _LONGEST))
    if speed is None:
        return rates, "bare matrix products: a decoder layer is too large to be timed for this"
    own = replace(rates, layer_macs_s=speed.layer_macs_s, head_macs_s=speed.head_macs_s, unpacked_s=speed.unpacked_s)
    return own, f"one decoder layer and a head of this shape, timed: {2 * own.layer_macs_s / 1e12:.3g} TFLOP/s"


def count_tokens(spec: Specification, tokenizer: Any, whose: str, max_length: int = _LONGEST) -> Tokens:
    """Count each item's tokens and scored positions; of a benchmark that is not at hand, take what was counted once.

    Units: `max_length` in tokens, the model's longest input.

    Raises:
        TaskError: a task's data are unusable, or are not at hand and were never counted.
    """
    from lowmem_layers.errors import TaskError

    try:
        tasks = read_tasks(spec)
    except TaskError:
        if spec.data_dir is not None or spec.fewshot or not set(spec.tasks) <= set(_COUNTED):
            raise
        return _remembered(spec)
    from lowmem_layers.engine.trie import trie_rows
    from lowmem_layers.tasks import encode_task

    bos = spec.bos
    encoded = [item for task in tasks for item in encode_task(task, tokenizer, bos=bos, max_length=max_length)]
    rows = [trie_rows([item], float) for item in encoded]
    trunk = tuple(sum(map(len, own)) for own in rows)
    scored = tuple(sum(len(row.scored_nodes) for row in own) for own in rows)
    return Tokens(trunk, scored, f"counted with the tokenizer of {whose}")


def _remembered(spec: Specification) -> Tokens:
    """Take every item of a benchmark for an average one."""
    trunk: list[int] = []
    scored: list[int] = []
    for task in spec.tasks:
        counted, tokens, positions = _COUNTED[task]
        n_items = min(spec.limit or _SPLITS[task], _SPLITS[task])
        trunk += [round(tokens / counted)] * n_items
        scored += [round(positions / counted)] * n_items
    whose = f"the data are not at hand: averages of earlier counts with {EMBEDDED_MODEL}'s tokenizer"
    return Tokens(tuple(trunk), tuple(scored), whose)


def _read(spec: Specification, dtype: Any) -> tuple[ModelShape, Any, Any, str]:
    """Read shape, config and tokenizer; a shipped shape has none of its own, so the embedded model's counts tokens."""
    import lowmem_layers.study.run  # noqa: F401  # so that this process is as large as that of a run
    from lowmem_layers.engine import Engine  # noqa: F401
    from lowmem_layers.model.checkpoint.source import find_source
    from lowmem_layers.model.checkpoint.texts import read_tokenizer
    from lowmem_layers.model.load import outline_of, resolve
    from lowmem_layers.model.memory import resident_bytes
    from lowmem_layers.model.shape import shape_from, shape_of, shipped_config

    request = model_spec(spec)
    if request.model in SHIPPED and not Path(request.model).exists():
        embedded = replace(request, model=EMBEDDED_MODEL)
        tokenizer = read_tokenizer(find_source(embedded), embedded)
        config, target = shipped_config(request.model), _TARGETS[request.quant]
        shape = shape_of(config, target, dtype, process_bytes=resident_bytes())
        return shape, config, tokenizer, EMBEDDED_MODEL
    plan = resolve(request)
    tokenizer = read_tokenizer(plan.source, request)  # before the process is measured, as on loading
    outline = outline_of(plan)
    shape = shape_from(outline.model, outline.anatomy, outline.places, outline.sizes)
    return shape, plan.config, tokenizer, plan.source.name
