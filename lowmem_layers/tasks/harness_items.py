"""The items of lm-evaluation-harness' tasks: its own requests, one right answer each, and what its metrics need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.harness import HARNESS_PREFIX
from lowmem_layers.tasks.items import Examples, Item
from lowmem_layers.tasks.metrics import Value
from lowmem_layers.tasks.records import reason, shown

_FEWSHOT_SEED = 1234  # lm-evaluation-harness: `simple_evaluate(fewshot_random_seed=1234)`
_RULE_HINT = "items with several right answers, or with other measures, cannot be scored"


@dataclass(frozen=True)
class HarnessItems:
    """What a task of the harness gives: items, metric, the facts for the run's record, what begins continuations.

    `rolls` says that items are documents, of which every token is scored.
    """

    items: tuple[Item, ...]
    metric: Value
    source: dict[str, Any]
    delimiter: str
    rolls: bool


def harness_items(name: str, task: Any, *, fewshot: int | None, limit: int | None) -> HarnessItems:
    """Take the first `limit` items of a task, its metric, and the facts about its source for the run's record.

    `fewshot` is the number of examples; None means the task's own number.

    Raises:
        TaskError: an item cannot be built, or is not judged by one right answer.
    """
    # 1) the items: the seed makes the harness draw the same examples as in its own evaluation
    shots = int(task.config.num_fewshot or 0) if fewshot is None else fewshot
    task.set_fewshot_seed(_FEWSHOT_SEED)
    kind, words = task.OUTPUT_TYPE, 0
    items: list[Item] = []
    seen: set[str] = set()
    for index, doc in enumerate(islice(task.eval_docs, limit)):
        item_id = _item_id(doc, name, index, seen)
        try:
            if kind == "loglikelihood_rolling":
                item, n_words = _document(task, doc, HARNESS_PREFIX + name, item_id)
                words += n_words
            else:
                make = _question if kind == "multiple_choice" else _cloze
                item = make(task, doc, HARNESS_PREFIX + name, item_id, shots)
            items.append(item)
        except TaskError:
            raise
        except Exception as error:  # a task's own code and templates
            raise TaskError(
                f"{HARNESS_PREFIX}{name}, item {item_id!r}: the harness' task fails "
                f"({type(error).__name__}: {reason(error)})",
                "the task expects other documents: the data or the harness may be of another version",
            ) from error
    # 2) the metric and the source
    source = _source(task, shots)
    if kind == "loglikelihood_rolling":
        source |= {"words": words, "bytes": sum(item.choice_bytes[0] for item in items)}
    metrics = {entry["metric"] for entry in task.config.metric_list or []}
    accuracy: Value = "acc_norm" if "acc_norm" in metrics else "acc"
    of_continuations: Value = "greedy" if "acc" in metrics and "perplexity" not in metrics else "loglikelihood"
    others: dict[str, Value] = {"loglikelihood": of_continuations, "loglikelihood_rolling": "nll_per_byte"}
    delimiter = task.config.target_delimiter if kind == "multiple_choice" else ""
    return HarnessItems(tuple(items), others.get(kind, accuracy), source, delimiter, kind == "loglikelihood_rolling")


def _source(task: Any, shots: int) -> dict[str, Any]:
    """Say where a task's items come from, for the run's record; earlier records do not name the kind: there was one."""
    from importlib.metadata import version

    return {
        "kind": "lm-evaluation-harness",
        "harness": version("lm_eval"),
        "hub": task.config.dataset_path,
        "config": task.config.dataset_name,
        "split": task.config.test_split or task.config.validation_split,
        "task_version": (task.config.metadata or {}).get("version"),
        "fewshot": shots,
        **({} if task.OUTPUT_TYPE == "multiple_choice" else {"output_type": task.OUTPUT_TYPE}),
    }


def _item_id(doc: Any, name: str, index: int, seen: set[str]) -> str:
    """Take the document's own id if no earlier document has it; otherwise name the item by its place."""
    own = doc.get("id") if isinstance(doc, Mapping) else None
    usable = isinstance(own, int | str) and not isinstance(own, bool) and str(own).strip() and str(own).isprintable()
    chosen = str(own) if usable and str(own) not in seen else f"{name}-{index}"
    seen.add(chosen)
    return chosen


def _question(task: Any, doc: Any, name: str, item_id: str, shots: int) -> Item:
    """Build an item with choices from the harness' own requests. Source: `ConfigurableTask.construct_requests`.

    Raises:
        TaskError: a choice is empty, or the document is not judged by one right answer.
    """
    where = f"{name}, item {item_id!r}"
    # 1) contexts and continuations: one request a choice; those after them are for acc_mutual_info, not used here
    choices = task.doc_to_choice(doc)
    if not all(choices):
        raise TaskError(f"{where}: an empty choice", "such items cannot be scored by length")
    context, examples = _context(task, doc, shots)
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
        examples=examples,
    )


def _context(task: Any, doc: Any, shots: int) -> tuple[Any, Examples]:
    """Let the harness write an item's context, or one for each choice; listen to which turns it makes examples of."""
    turns: list[list[Any]] = []
    own = getattr(task, "build_qa_turn", None)

    def listening(**given: Any) -> Any:
        turns.append(own(**given))  # pyright: ignore[reportOptionalCall]
        return turns[-1]

    if own is not None:
        task.build_qa_turn = listening
    try:
        context = task.fewshot_context(doc, shots, gen_prefix=task.doc_to_prefix(doc))
    finally:
        if own is not None:
            del task.build_qa_turn
    pairs = [turn for turn in turns[:shots] if len(turn) == 2]
    text = "".join(message.to_text() for pair in pairs for message in pair)
    return context, Examples(text, tuple((question.content, answer.content) for question, answer in pairs))


def _cloze(task: Any, doc: Any, name: str, item_id: str, shots: int) -> Item:
    """Build an item with one continuation, such as LAMBADA's last word. Source: output type `loglikelihood`.

    Raises:
        TaskError: the continuation is empty, or its log-likelihood is not what the task is about.
    """
    where = f"{name}, item {item_id!r}"
    context, examples = _context(task, doc, shots)
    context, target = task.construct_requests(doc=doc, ctx=context).args
    if not isinstance(target, str) or not target.strip():
        raise TaskError(f"{where}: the continuation is empty", "such items cannot be scored")
    results = [task.process_results(doc, [(-2.0, would_write)]) for would_write in (False, True)]
    if any(r.get("perplexity", -2.0) != -2.0 or r.get("acc", n) != n for n, r in enumerate(results)):
        raise TaskError(f"{where}: judged by a rule of the task's own, not by its log-likelihood", _RULE_HINT)
    return Item(
        task=name,
        id=item_id,
        contexts=(context,),
        continuations=(target,),
        choice_chars=(len(target),),
        choice_bytes=(len(target.encode()),),
        gold=0,
        cluster=item_id,
        system=task.resolve_field(doc, task.config.description) or "",
        asks_likeliest="acc" in results[0],
        examples=examples,
    )


def _document(task: Any, doc: Any, name: str, item_id: str) -> tuple[Item, int]:
    """Build an item of which every token is scored, and count its words. Source: output type `loglikelihood_rolling`.

    Words and bytes are those by which the task's own rule divides: WikiText counts in the text as it is published.

    Raises:
        TaskError: the document is empty, or its log-likelihood is not what the task is about.
    """
    where = f"{name}, item {item_id!r}"
    (text,) = task.construct_requests(doc=doc, ctx="").args
    if not isinstance(text, str) or not text:
        raise TaskError(f"{where}: the document is empty", "such items cannot be scored")
    results = task.process_results(doc, [-2.0])
    value, n_bytes = results.get("byte_perplexity") or results.get("bits_per_byte") or (-2.0, len(text.encode()))
    _, n_words = results.get("word_perplexity") or (-2.0, task.count_words(text))
    if value != -2.0 or n_bytes < 1:
        raise TaskError(f"{where}: judged by a rule of the task's own, not by its log-likelihood", _RULE_HINT)
    return Item(name, item_id, ("",), (text,), (len(text),), (int(n_bytes),), 0, item_id), int(n_words)
