"""The six benchmarks: from a record with the hub's field names to an item, by lm-evaluation-harness' prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lowmem_layers.tasks.items import Item, make_item
from lowmem_layers.tasks.records import Record, shown

Reader = Callable[[Record, str, str], Item]


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lives on the hub, which split is evaluated, its metric and how its records are read."""

    name: str
    hub_id: str
    hub_config: str | None
    split: str
    metric: str
    read: Reader
    train_split: str = "train"


def _boolq(record: Record, task: str, item_id: str) -> Item:
    """Ask a yes/no question about a passage. Source: lm-evaluation-harness, `super_glue/boolq/default.yaml`."""
    passage = record.text("passage", blank=True)
    context = f"{passage}\nQuestion: {record.text('question')}?\nAnswer:"
    shared = "passage-" + hashlib.sha256(passage.encode()).hexdigest()[:16]
    return make_item(task, item_id, (context, context), ("no", "yes"), _yes_no(record), shared)


def _yes_no(record: Record) -> int:
    """Read the hub's `label` (0 or 1; true or false in SuperGLUE's own files), or the original's `answer`."""
    if record.has("answer") and not record.has("label"):
        answer = record.get("answer")
        if not isinstance(answer, bool):
            record.fail("answer", f"expected true or false, got {shown(answer)}")
        return int(answer)
    label = record.get("label")
    return int(label) if isinstance(label, bool) else record.choice_index("label", 2)


def _arc(record: Record, task: str, item_id: str) -> Item:
    """Ask a science question with 3 to 5 choices. Source: lm-evaluation-harness, `arc/arc_easy.yaml`."""
    stem = _stem(record, "question")
    return _labelled(record, task, item_id, f"Question: {stem}\nAnswer:", _key(record))


def _openbookqa(record: Record, task: str, item_id: str) -> Item:
    """Complete a sentence. Source: lm-evaluation-harness, `openbookqa/openbookqa.yaml` (answerKey is lstripped)."""
    stem = _stem(record, "question_stem")
    return _labelled(record, task, item_id, stem, _key(record).lstrip())


def _stem(record: Record, field: str) -> str:
    """Read the question: the hub's text, or the authors' own files' object with `stem` and `choices`."""
    return record.text("question.stem" if _is_nested(record) else field)


def _is_nested(record: Record) -> bool:
    return isinstance(record.fields.get("question"), Mapping)


def _key(record: Record) -> str:
    key = record.get("answerKey")
    return str(key) if isinstance(key, int) and not isinstance(key, bool) else record.text("answerKey")


def _labelled(record: Record, task: str, item_id: str, context: str, key: str) -> Item:
    choices, labels = _choices_and_labels(record)
    if len(labels) != len(choices):
        record.fail("choices.label", f"{len(labels)} labels for {len(choices)} choices")
    if labels.count(key) != 1:
        record.fail("answerKey", f"{shown(key)} is not exactly one of the choices' labels ({', '.join(labels)})")
    return make_item(task, item_id, (context,) * len(choices), choices, labels.index(key))


def _choices_and_labels(record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the hub's lists `choices.text` and `choices.label`, or the authors' list of objects with `text`, `label`."""
    nested = _is_nested(record)
    field = "question.choices" if nested else "choices"
    found = record.get(field)
    if not isinstance(found, list | tuple) or not all(isinstance(choice, Mapping) for choice in found):
        return record.texts(f"{field}.text", at_least=2), record.texts(f"{field}.label", at_least=2)
    columns = {name: [choice.get(name) for choice in found] for name in ("text", "label")}
    flat = Record({"question": {"choices": columns}} if nested else {"choices": columns}, record.where)
    return flat.texts(f"{field}.text", at_least=2), flat.texts(f"{field}.label", at_least=2)


def _piqa(record: Record, task: str, item_id: str) -> Item:
    """Choose the better of two solutions. Source: lm-evaluation-harness, `piqa/piqa.yaml`."""
    context = f"Question: {record.text('goal')}\nAnswer:"
    choices = (record.text("sol1"), record.text("sol2"))
    return make_item(task, item_id, (context, context), choices, record.choice_index("label", 2))


def _winogrande(record: Record, task: str, item_id: str) -> Item:
    """Score what follows the gap, given each filling. Source: lm-evaluation-harness, `preprocess_winogrande.py`."""
    sentence = record.text("sentence")
    before, gap, after = sentence.partition("_")
    if not gap or not after.strip():
        record.fail("sentence", "no gap (_) with text after it")
    contexts = tuple(before + record.text(option) for option in ("option1", "option2"))
    answer = record.get("answer")
    if answer not in ("1", "2", 1, 2) or isinstance(answer, bool | float):
        hint = "the test split has no answers: use validation" if answer == "" else ""
        record.fail("answer", f'expected "1" or "2", got {shown(answer)}', hint)
    has_own_id = any(record.has(name) for name in ("id", "qID"))
    cluster = twin_cluster(item_id) if has_own_id else _twin_by_text(record)
    return make_item(task, item_id, contexts, (after.strip(),) * 2, int(answer) - 1, cluster)


def twin_cluster(item_id: str) -> str:
    """Give twin sentences one cluster: their ids differ only in the final -1 or -2."""
    return item_id[:-2] if item_id[-2:] in ("-1", "-2") and len(item_id) > 2 else item_id


def _twin_by_text(record: Record) -> str:
    """Pair twin sentences where the ids are gone, as on the hub: the same options and the same first two words."""
    options = sorted(record.text(option) for option in ("option1", "option2"))
    key = json.dumps([options, record.text("sentence").split()[:2]])
    return "twins-" + hashlib.sha256(key.encode()).hexdigest()[:16]


_ALL = (
    Benchmark("boolq", "aps/super_glue", "boolq", "validation", "acc", _boolq),
    Benchmark("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", "acc_norm", _arc),
    Benchmark("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", "acc_norm", _arc),
    Benchmark("piqa", "baber/piqa", None, "validation", "acc_norm", _piqa),
    Benchmark("winogrande", "allenai/winogrande", "winogrande_xl", "validation", "acc", _winogrande),
    Benchmark("openbookqa", "allenai/openbookqa", "main", "test", "acc_norm", _openbookqa),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
