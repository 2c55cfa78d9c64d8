"""Multiple-choice tasks of lm-evaluation-harness, with its own documents and prompts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import Item

HARNESS_PREFIX = "lm_eval:"
_FEWSHOT_SEED = 1234  # lm-evaluation-harness: `simple_evaluate(fewshot_random_seed=1234)`


def harness_items(
    name: str, *, fewshot: int | None, limit: int | None, include: Path | None = None
) -> tuple[tuple[Item, ...], str, dict[str, Any]]:
    """Take a task's items, its metric and where it comes from; `fewshot` None leaves the task's own number.

    Raises:
        TaskError: the package is missing, there is no such task, it is of another kind, or its data are out of reach.
    """
    task = _task(name, include)
    shots = _shots(task) if fewshot is None else fewshot
    task.set_fewshot_seed(_FEWSHOT_SEED)
    items = tuple(_items(task, HARNESS_PREFIX + name, shots, limit))
    metrics = {entry["metric"] for entry in task.config.metric_list or []}
    source = {
        "kind": "lm-evaluation-harness",
        "harness": _version(),
        "hub": task.config.dataset_path,
        "config": task.config.dataset_name,
        "split": task.config.test_split or task.config.validation_split,
        "task_version": (task.config.metadata or {}).get("version"),
        "fewshot": shots,
    }
    return items, "acc_norm" if "acc_norm" in metrics else "acc", source


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


@cache
def _manager(include: Path | None) -> Any:
    """Build the harness' index of its thousands of task files once a process: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def _task(name: str, include: Path | None) -> Any:
    try:
        manager = _manager(include)
    except ImportError as error:
        raise TaskError(
            f"{HARNESS_PREFIX}{name} needs lm-evaluation-harness", "pip install 'lowmem-layers[lm-eval]'"
        ) from error
    known: Sequence[str] = manager.all_subtasks
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        guess = f"did you mean {' or '.join(near)}?" if near else "see: lm_eval ls subtasks"
        raise TaskError(f"lm-evaluation-harness has no task {name!r}", guess)
    return _checked(name, _loaded(manager, name))


def _loaded(manager: Any, name: str) -> Any:
    try:
        if hasattr(manager, "load"):
            return manager.load(name)["tasks"][name]
        return manager.load_task_or_group(name)[name]  # before `load` came in its place
    except (OSError, ValueError) as error:  # OSError: every ConnectionError
        reason = " ".join(str(error).split())[:200]
        raise TaskError(
            f"lm-evaluation-harness cannot load the data of {name}: {reason}",
            "fetch them once where there is a network; afterwards HF_HUB_OFFLINE=1 uses what was fetched",
        ) from error


def _checked(name: str, task: Any) -> Any:
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind != "multiple_choice":
        raise TaskError(f"{HARNESS_PREFIX}{name} is of kind {kind}", "only multiple_choice tasks can be scored")
    return task


def _shots(task: Any) -> int:
    return int(task.config.num_fewshot or 0)


def _items(task: Any, name: str, shots: int, limit: int | None) -> Iterator[Item]:
    for index, doc in enumerate(islice(task.eval_docs, limit)):
        yield _item(task, doc, name, index, shots)


def _item(task: Any, doc: Any, name: str, index: int, shots: int) -> Item:
    """Build an item from the harness' own requests. Source: `ConfigurableTask.construct_requests`."""
    choices = task.doc_to_choice(doc)
    if not all(choices):
        raise TaskError(f"{name}, item {index}: an empty choice", "such items cannot be scored by length")
    requests = task.construct_requests(doc=doc, ctx=task.fewshot_context(doc, shots))[: len(choices)]
    pairs = [request.args[:2] for request in requests]
    item_id = f"{name.removeprefix(HARNESS_PREFIX)}-{index}"  # its documents' own ids are of many kinds, some repeated
    return Item(
        task=name,
        id=item_id,
        contexts=tuple(context for context, _ in pairs),
        continuations=tuple(continuation for _, continuation in pairs),
        choice_chars=tuple(len(choice) for choice in choices),
        choice_bytes=tuple(len(choice.encode()) for choice in choices),
        gold=_gold(task, doc, choices, name, item_id),
        cluster=item_id,
    )


def _gold(task: Any, doc: Any, choices: Sequence[str], name: str, item_id: str) -> int:
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise TaskError(
            f"{name}, item {item_id}: gold {gold!r:.60} is not one of the {len(choices)} choices",
            "items with several right answers, or none, cannot be scored",
        )
    return gold
