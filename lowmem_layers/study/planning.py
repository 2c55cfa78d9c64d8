"""What a run would take, without loading a weight: the model's shape, the tasks' tokens, the machine's speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_layers.model.machine import CARDS, Machine
from lowmem_layers.model.plan import Workload, WorkPlan
from lowmem_layers.model.shape import SHIPPED, ModelShape
from lowmem_layers.model.spec import EMBEDDED_MODEL, ModelSpec
from lowmem_layers.study.game import plan_game
from lowmem_layers.study.prepare import model_spec, read_tasks
from lowmem_layers.study.spec import StudySpec, one_of

_SHARE_FOR_STATES = 0.6  # of a GPU's memory, as the engine takes
_CPU_STATES_BYTES = 2 << 30
_TARGETS = {"none": "none", "4bit": "nf4", "8bit": "int8"}
_LONGEST = 2048


@dataclass(frozen=True)
class StudyPlan:
    """A run before it is run.

    Units: tokens of the items' tries; `tile_tokens` of one sweep; bytes. `tokenizer` says whose tokens were counted.
    """

    model: str
    shape: ModelShape
    work: WorkPlan
    machine: Machine
    home: str
    n_items: int
    trunk_tokens: int
    scored_tokens: int
    tile_tokens: int
    tokenizer: str


def plan_study(spec: StudySpec, card: str | None = None) -> StudyPlan:
    """Plan a run of a model by its config alone; `card` names a graphics card, None means this machine.

    Raises:
        LowmemLayersError: the model, the tasks or the card are unknown.
    """
    from lowmem_layers.model.devices import resolve_device, resolve_dtype
    from lowmem_layers.model.machine import measure_machine, named_card
    from lowmem_layers.model.plan import plan_work
    from lowmem_layers.model.shape import shape_of

    resolved = spec.resolved()
    one_of("--for", card, tuple(CARDS))
    device = resolve_device(resolved.device or "auto")  # type: ignore[arg-type]
    dtype = resolve_dtype("bfloat16" if card else resolved.dtype or "auto", device)  # type: ignore[arg-type]
    config, tokenizer, whose = _read(model_spec(resolved))
    shape = shape_of(config, _TARGETS[resolved.quant or "none"], dtype)
    n_items, trunk, scored = count_tokens(resolved, tokenizer)
    machine = named_card(card) if card else measure_machine(device, dtype)
    on_gpu = card is not None or device.type == "cuda"
    home = _home(resolved.offload or "auto", shape, machine, on_gpu=on_gpu)
    n_coalitions = len(plan_game(resolved, shape.players).removed)
    states = _SHARE_FOR_STATES * machine.memory_bytes if on_gpu else _CPU_STATES_BYTES
    tile_tokens = max(1, int(states / (n_coalitions * shape.hidden * dtype.itemsize)))
    workload = Workload(resolved.max_removed or 0, trunk, scored, -(-trunk // tile_tokens))
    work = plan_work(shape, workload, machine, home=home, itemsize=dtype.itemsize)
    return StudyPlan(
        resolved.model or "", shape, work, machine, home, n_items, trunk, scored, min(tile_tokens, trunk), whose
    )


def count_tokens(spec: StudySpec, tokenizer: Any) -> tuple[int, int, int]:
    """Count items, tokens of their tries, and scored positions."""
    from lowmem_layers.engine.trie import trie_rows
    from lowmem_layers.tasks import encode_task

    encoded = [
        item
        for task in read_tasks(spec)
        for item in encode_task(task, tokenizer, bos=spec.bos or "auto", max_length=_LONGEST)
    ]
    rows = trie_rows(encoded, float)
    return len(encoded), sum(map(len, rows)), sum(len(row.scored_nodes) for row in rows)


def _read(spec: ModelSpec) -> tuple[Any, Any, str]:
    """Read config and tokenizer; a shipped shape has none of its own, so the embedded model's counts its tokens."""
    from lowmem_layers.model.shape import shipped_config
    from lowmem_layers.model.source import find_source
    from lowmem_layers.model.texts import read_config, read_tokenizer

    if spec.model in SHIPPED and not Path(spec.model).exists():
        embedded = ModelSpec()
        return shipped_config(spec.model), read_tokenizer(find_source(embedded), embedded), EMBEDDED_MODEL
    source = find_source(spec)
    return read_config(source, spec), read_tokenizer(source, spec), source.name


def _home(offload: str, shape: ModelShape, machine: Machine, *, on_gpu: bool) -> str:
    if offload != "auto":
        return {"none": "device"}.get(offload, offload)
    if not on_gpu:
        return "device"
    fits = shape.n_bytes.packed + shape.n_bytes.resident + shape.n_bytes.slots < machine.memory_bytes / 2
    return "device" if fits else "cpu"
