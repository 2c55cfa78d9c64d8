"""Multiple-choice tasks of lm-evaluation-harness, with its own documents and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, did_you_mean
from lowmem_layers.tasks.items import Item
from lowmem_layers.tasks.records import reason, shown

HARNESS_PREFIX = "lm_eval:"
_KIND = "multiple_choice"
_FEWSHOT_SEED = 1234  # lm-evaluation-harness: `simple_evaluate(fewshot_random_seed=1234)`


@cache
def _manager(include: Path | None) -> Any:
    """Build the harness' index of its thousands of task files once a process, because this takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def harness_tasks(name: str, include: Path | None = None) -> dict[str, Any]:
    """Load a task of the harness, or all tasks of one of its groups or tags, by their names.

    `include` is a folder with more task files.

    Raises:
        TaskError: the package is missing, there is no such task, the task is of another kind, or its data cannot be
            loaded.
    """
    # 1) find the name in the harness' index
    try:
        manager = _manager(include)
    except ImportError as error:
        raise TaskError(
            f"{HARNESS_PREFIX}{name} needs lm-evaluation-harness", "pip install 'lowmem-layers[lm-eval]'"
        ) from error
    if name not in manager.all_tasks:
        hint = f"{did_you_mean(name, manager.all_tasks, n=3)}all tasks are listed by: lm_eval ls tasks"
        raise TaskError(f"lm-evaluation-harness has no task {name!r}", hint)
    # 2) refuse another kind before its data are fetched; a group and a Python task say their kind only when loaded
    _check_kind(name, (manager.task_index[name].cfg or {}).get("output_type", _KIND))
    # 3) load the task and its data
    try:
        loaded = manager.load(name)["tasks"]
    except Exception as error:  # loading runs a task's own code, and the hub's client
        raise TaskError(
            f"lm-evaluation-harness cannot load the data of {name}: {type(error).__name__}: {reason(error)}",
            "fetch them once where there is a network; afterwards HF_HUB_OFFLINE=1 uses what was fetched",
        ) from error
    for member, task in loaded.items():
        _check_kind(member, getattr(task, "OUTPUT_TYPE", None))
    return loaded


def _check_kind(name: str, kind: Any) -> None:
    if kind != _KIND:
        raise TaskError(f"{HARNESS_PREFIX}{name} is of kind {kind}", f"only {_KIND} tasks can be scored")


def harness_items(
    name: str, task: Any, *, fewshot: int | None, limit: int | None
) -> tuple[tuple[Item, ...], str, dict[str, Any]]:
    """Take the first `limit` items of a task, its metric, and the facts about its source for the run's record.

    `fewshot` is the number of examples; None means the task's own number.

    Raises:
        TaskError: an item cannot be built, or is not judged by one right answer.
    """
    from importlib.metadata import version

    # 1) the items: the seed makes the harness draw the same examples as in its own evaluation
    shots = int(task.config.num_fewshot or 0) if fewshot is None else fewshot
    task.set_fewshot_seed(_FEWSHOT_SEED)
    items: list[Item] = []
    seen: set[str] = set()
    for index, doc in enumerate(islice(task.eval_docs, limit)):
        item_id = _item_id(doc, name, index, seen)
        try:
            items.append(_item(task, doc, HARNESS_PREFIX + name, item_id, shots))
        except TaskError:
            raise
        except Exception as error:  # a task's own code and templates
            raise TaskError(
                f"{HARNESS_PREFIX}{name}, item {item_id!r}: the harness' task fails "
                f"({type(error).__name__}: {reason(error)})",
                "the task expects other documents: the data or the harness may be of another version",
            ) from error
    # 2) the metric and the source
    metrics = {entry["metric"] for entry in task.config.metric_list or []}
    source = {
        "kind": "lm-evaluation-harness",
        "harness": version("lm_eval"),
        "hub": task.config.dataset_path,
        "config": task.config.dataset_name,
        "split": task.config.test_split or task.config.validation_split,
        "task_version": (task.config.metadata or {}).get("version"),
        "fewshot": shots,
    }
    return tuple(items), "acc_norm" if "acc_norm" in metrics else "acc", source


def _item_id(doc: Any, name: str, index: int, seen: set[str]) -> str:
    """Take the document's own id if no earlier document has it; otherwise name the item by its place."""
    own = doc.get("id") if isinstance(doc, Mapping) else None
    usable = isinstance(own, int | str) and not isinstance(own, bool) and str(own).strip() and str(own).isprintable()
    chosen = str(own) if usable and str(own) not in seen else f"{name}-{index}"
    seen.add(chosen)
    return chosen


def _item(task: Any, doc: Any, name: str, item_id: str, shots: int) -> Item:
    """Build an item from the harness' own requests. Source: `ConfigurableTask.construct_requests`.

    Raises:
        TaskError: a choice is empty, or the document is not judged by one right answer.
    """
    where = f"{name}, item {item_id!r}"
    # 1) contexts and continuations: one request a choice; those after them are for acc_mutual_info, not used here
    choices = task.doc_to_choice(doc)
    if not all(choices):
        raise TaskError(f"{where}: an empty choice", "such items cannot be scored by length")
    context = task.fewshot_context(doc, shots, gen_prefix=task.doc_to_prefix(doc))
    requests = task.construct_requests(doc=doc, ctx=context)[: len(choices)]
    pairs = [request.args[:2] for request in requests]
    # 2) the right answer: with several inputs, the harness keeps its index where other tasks have their context
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in choices:
        gold = choices.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise TaskError(
            f"{where}: gold {shown(gold)} is not one of the {len(choices)} choices",
            "items with several right answers, or none, cannot be scored",
        )
    # 3) a task may judge results by a rule of its own: let each choice win once; only the gold one may be right
    if task.config.process_results is not None:
        for winner in range(len(choices)):
            results = [(0.0 if index == winner else -1000.0, False) for index in range(len(choices))]
            if task.process_results(doc, results).get("acc") != float(winner == gold):
                raise TaskError(
                    f"{where}: judged by a rule of the task's own, not by one right answer",
                    "items with several right answers, or with measures other than accuracy, cannot be scored",
                )
    return Item(
        task=name,
        id=item_id,
        contexts=tuple(context for context, _ in pairs),
        continuations=tuple(continuation for _, continuation in pairs),
        choice_chars=tuple(len(choice) for choice in choices),
        choice_bytes=tuple(len(choice.encode()) for choice in choices),
        gold=gold,
        cluster=item_id,
        system=task.resolve_field(doc, task.config.description) or "",
    )
