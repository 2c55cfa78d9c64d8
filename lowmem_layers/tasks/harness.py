"""Multiple-choice tasks of lm-evaluation-harness, with its own documents and prompts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import Item
from lowmem_layers.tasks.records import shown

HARNESS_PREFIX = "lm_eval:"
_KIND = "multiple_choice"
_FEWSHOT_SEED = 1234  # lm-evaluation-harness: `simple_evaluate(fewshot_random_seed=1234)`


def harness_tasks(name: str, include: Path | None = None) -> dict[str, Any]:
    """Load a task of the harness, or all tasks of one of its groups, by their names.

    Raises:
        TaskError: the package is missing, there is no such task, it is of another kind, or its data are out of reach.
    """
    manager = _known(name, include)
    entry = getattr(manager, "task_index", {}).get(name)
    _check_kind(name, (getattr(entry, "cfg", None) or {}).get("output_type", _KIND))  # before data are fetched
    return {member: _checked(member, task) for member, task in _loaded(manager, name).items()}


def harness_items(
    name: str, task: Any, *, fewshot: int | None, limit: int | None
) -> tuple[tuple[Item, ...], str, dict[str, Any]]:
    """Take a task's items, its metric and where it comes from; `fewshot` None leaves the task's own number.

    Raises:
        TaskError: an item cannot be built, or is not judged by one right answer.
    """
    shots = int(task.config.num_fewshot or 0) if fewshot is None else fewshot
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


def _known(name: str, include: Path | None) -> Any:
    """Give the harness' index, which has a task, group or tag of this name."""
    try:
        manager = _manager(include)
    except ImportError as error:
        raise TaskError(
            f"{HARNESS_PREFIX}{name} needs lm-evaluation-harness", "pip install 'lowmem-layers[lm-eval]'"
        ) from error
    known: Sequence[str] = manager.all_tasks
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        guess = f"did you mean {' or '.join(near)}?" if near else "see: lm_eval ls tasks"
        raise TaskError(f"lm-evaluation-harness has no task {name!r}", guess)
    return manager


def _loaded(manager: Any, name: str) -> dict[str, Any]:
    try:
        if hasattr(manager, "load"):
            return manager.load(name)["tasks"]
        return manager.load_task_or_group(name)  # before `load` came in its place
    except Exception as error:  # loading runs a task's own code, and the hub's client
        raise TaskError(
            f"lm-evaluation-harness cannot load the data of {name}: {_reason(error)}",
            "fetch them once where there is a network; afterwards HF_HUB_OFFLINE=1 uses what was fetched",
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _checked(name: str, task: Any) -> Any:
    _check_kind(name, getattr(task, "OUTPUT_TYPE", None))
    return task


def _check_kind(name: str, kind: Any) -> None:
    if kind != _KIND:
        raise TaskError(f"{HARNESS_PREFIX}{name} is of kind {kind}", f"only {_KIND} tasks can be scored")


def _items(task: Any, name: str, shots: int, limit: int | None) -> Iterator[Item]:
    seen: set[str] = set()
    for index, doc in enumerate(islice(task.eval_docs, limit)):
        item_id = _item_id(doc, name, index, seen)
        try:
            yield _item(task, doc, name, item_id, shots)
        except TaskError:
            raise
        except Exception as error:  # a task's own code and templates
            raise TaskError(
                f"{name}, item {item_id!r}: the harness' task fails ({_reason(error)})",
                "its documents are not what it expects: another version of the data, or of the harness?",
            ) from error


def _item_id(doc: Any, name: str, index: int, seen: set[str]) -> str:
    """Take the document's own id where it has one that no earlier document has, else name it by its place."""
    own = doc.get("id") if isinstance(doc, Mapping) else None
    usable = isinstance(own, int | str) and not isinstance(own, bool) and str(own).strip() and str(own).isprintable()
    chosen = str(own) if usable and str(own) not in seen else f"{name.removeprefix(HARNESS_PREFIX)}-{index}"
    seen.add(chosen)
    return chosen


def _item(task: Any, doc: Any, name: str, item_id: str, shots: int) -> Item:
    """Build an item from the harness' own requests. Source: `ConfigurableTask.construct_requests`."""
    choices = task.doc_to_choice(doc)
    if not all(choices):
        raise TaskError(f"{name}, item {item_id!r}: an empty choice", "such items cannot be scored by length")
    requests = task.construct_requests(doc=doc, ctx=task.fewshot_context(doc, shots))[: len(choices)]
    pairs = [request.args[:2] for request in requests]
    gold = _gold(task, doc, choices, name, item_id)
    _check_rule(task, doc, gold, len(choices), name, item_id)
    return Item(
        task=name,
        id=item_id,
        contexts=tuple(context for context, _ in pairs),
        continuations=tuple(continuation for _, continuation in pairs),
        choice_chars=tuple(len(choice) for choice in choices),
        choice_bytes=tuple(len(choice.encode()) for choice in choices),
        gold=gold,
        cluster=item_id,
    )


def _check_rule(task: Any, doc: Any, gold: int, n_choices: int, name: str, item_id: str) -> None:
    """Where a task has a rule of its own for results, ask it what it says of each choice winning.

    Raises:
        TaskError: it does not call exactly the gold choice right.
    """
    if task.config.process_results is None:
        return
    for winner in range(n_choices):
        found = task.process_results(doc, [(0.0 if j == winner else -1000.0, False) for j in range(n_choices)])
        if found.get("acc") != float(winner == gold):
            raise TaskError(
                f"{name}, item {item_id!r}: judged by a rule of the task's own, not by one right answer",
                "items with several right answers, or with measures other than accuracy, cannot be scored",
            )


def _gold(task: Any, doc: Any, choices: Sequence[str], name: str, item_id: str) -> int:
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise TaskError(
            f"{name}, item {item_id!r}: gold {shown(gold)} is not one of the {len(choices)} choices",
            "items with several right answers, or none, cannot be scored",
        )
    return gold
