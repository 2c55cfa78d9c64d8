"""The six benchmarks: from a record with the hub's field names to an item, by lm-evaluation-harness' prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
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
    """Read SuperGLUE's `label` (0 or 1), or the original's `answer` (true or false)."""
    if record.has("answer") and not record.has("label"):
        answer = record.get("answer")
        if not isinstance(answer, bool):
            record.fail("answer", f"expected true or false, got {shown(answer)}")
        return int(answer)
    return record.choice_index("label", 2)


def _arc(record: Record, task: str, item_id: str) -> Item:
    """Ask a science question with 3 to 5 choices. Source: lm-evaluation-harness, `arc/arc_easy.yaml`."""
    context = f"Question: {record.text('question')}\nAnswer:"
    return _labelled(record, task, item_id, context, record.text("answerKey"))


def _openbookqa(record: Record, task: str, item_id: str) -> Item:
    """Complete a sentence. Source: lm-evaluation-harness, `openbookqa/openbookqa.yaml` (answerKey is lstripped)."""
    return _labelled(record, task, item_id, record.text("question_stem"), record.text("answerKey").lstrip())


def _labelled(record: Record, task: str, item_id: str, context: str, key: str) -> Item:
    choices = record.texts("choices.text", at_least=2)
    labels = record.texts("choices.label", at_least=2)
    if len(labels) != len(choices):
        record.fail("choices.label", f"{len(labels)} labels for {len(choices)} choices")
    if labels.count(key) != 1:
        record.fail("answerKey", f"{shown(key)} is not exactly one of the choices' labels ({', '.join(labels)})")
    return make_item(task, item_id, (context,) * len(choices), choices, labels.index(key))


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
    if answer not in ("1", "2"):
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
