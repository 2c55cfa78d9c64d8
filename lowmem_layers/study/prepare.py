"""Putting a model, its tasks and the engine together; bad input is refused here, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowmem_layers.model.spec import ModelSpec
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.events import Announce, StageStarted
from lowmem_layers.tasks.items import EncodedItem, Task

if TYPE_CHECKING:
    from lowmem_layers.model.load import Prospect


def prepare_study(spec: Specification, announce: Announce) -> Prepared:
    """Read the tasks, look at the model, encode the items, see that all of it will fit, and load the model.

    Raises:
        LowmemLayersError: the tasks, the model or the memory given are unusable.
    """
    announce(StageStarted("reading the tasks"))
    tasks = read_tasks(spec)
    announce(StageStarted("importing torch"))
    from lowmem_layers.engine import Engine
    from lowmem_layers.model import load_model
    from lowmem_layers.model.devices import use_threads

    threads = use_threads(spec.threads)
    encoded: list[EncodedItem] = []

    def room(prospect: Prospect) -> int:
        announce(StageStarted("encoding the items"))
        encoded.extend(_encoded(spec, tasks, prospect))
        return _least_room(spec, encoded, prospect)

    announce(StageStarted("looking at the model"))
    model = load_model(model_spec(spec), lambda line: announce(StageStarted(line)), room)
    machine = {"threads": threads}
    described = model.describe()
    engine = Engine(model, budget_bytes=_left_for_states(spec, described))
    without_texts = tuple(replace(task, items=(), shared_prefix="") for task in tasks)  # only tokens are needed now
    return Prepared(model.players, without_texts, tuple(encoded), engine, described, machine)


def _encoded(spec: Specification, tasks: Sequence[Task], prospect: Prospect) -> Iterator[EncodedItem]:
    from lowmem_layers.tasks import encode_task

    for task in tasks:
        yield from encode_task(task, prospect.tokenizer, bos=spec.bos, max_length=prospect.max_length)


def _least_room(spec: Specification, encoded: Sequence[EncodedItem], prospect: Prospect) -> int:
    """Count what the longest item needs besides the weights; removal orders may yet be cut, to single removals.

    Raises:
        UsageError: the model's players do not allow the game that the options ask for.
    """
    from lowmem_layers.engine.budget import longest_item, needed_room
    from lowmem_layers.game.players.tree import prefix_tree

    design = plan_design(spec, prospect.shape.players)
    tree = prefix_tree(design.cut([0] * len(design.orders)).removed, len(prospect.shape.players))
    return needed_room(prospect.shape, prospect.device, prospect.dtype.itemsize, tree, longest_item(encoded))


def _left_for_states(spec: Specification, described: Mapping[str, Any]) -> int | None:
    """Give the engine what the model leaves of the memory allowed; nothing said, its own choice. Units: bytes."""
    kind = "gpu" if described["device"] == "cuda" else "cpu"
    limit = spec.max_gpu_memory if kind == "gpu" else spec.max_cpu_memory
    return None if limit is None else max(1, limit - described[f"expected_{kind}_bytes"])


def read_tasks(spec: Specification) -> list[Task]:
    """Load the tasks of a specification.

    Raises:
        TaskError: a task or its data is unusable.
    """
    from lowmem_layers.tasks import load_tasks

    return load_tasks(
        spec.tasks,
        data_dir=_path(spec.data_dir),
        limit=spec.limit,
        fewshot=spec.fewshot,
        fewshot_file=_path(spec.fewshot_file),
        window=spec.window,
        stride=spec.stride,
    )


def model_spec(spec: Specification) -> ModelSpec:
    """Take from a specification what loading a model asks for."""
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
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
