"""The six benchmarks: from a record with the hub's field names to an item, with lm-evaluation-harness' prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lowmem_layers.tasks.items import Item, make_item
from lowmem_layers.tasks.metrics import Value
from lowmem_layers.tasks.records import Record, shown

Reader = Callable[[Record, str, str], Item]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its data set on the hub, the split that is evaluated, its metric and the reader of its records."""

    name: str
    hub_id: str
    hub_config: str | None
    split: str
    metric: Value
    read: Reader
    train_split: str = "train"


def read_boolq(record: Record, task: str, item_id: str) -> Item:
    """Ask a yes/no question about a passage. Source: lm-evaluation-harness, `super_glue/boolq/default.yaml`."""
    passage = record.text("passage", blank=True)
    context = f"{passage}\nQuestion: {record.text('question')}?\nAnswer:"
    # the hub has `label`, 0 or 1 (SuperGLUE's own files: true or false); the original data have `answer`
    if record.has("answer") and not record.has("label"):
        answer = record.get("answer")
        if not isinstance(answer, bool):
            record.fail("answer", f"expected true or false, got {shown(answer)}")
    else:
        label = record.get("label")
        answer = label if isinstance(label, bool) else record.choice_index("label", 2)
    cluster = "passage-" + hashlib.sha256(passage.encode()).hexdigest()[:16]
    return make_item(task, item_id, (context, context), ("no", "yes"), int(answer), cluster)


def read_arc(record: Record, task: str, item_id: str) -> Item:
    """Ask a science question with 3 to 5 choices. Source: lm-evaluation-harness, `arc/arc_easy.yaml`."""
    stem = record.text("question.stem" if _is_nested(record) else "question")
    return _labelled(record, task, item_id, f"Question: {stem}\nAnswer:", _key(record))


def read_openbookqa(record: Record, task: str, item_id: str) -> Item:
    """Complete a sentence. Source: lm-evaluation-harness, `openbookqa/openbookqa.yaml` (answerKey is lstripped)."""
    stem = record.text("question.stem" if _is_nested(record) else "question_stem")
    return _labelled(record, task, item_id, stem, _key(record).lstrip())


def _is_nested(record: Record) -> bool:
    """Recognise the authors' own files: their `question` is an object with `stem` and `choices`."""
    return isinstance(record.fields.get("question"), Mapping)


def _key(record: Record) -> str:
    """Read the gold choice's label; some copies have numbers where the hub has their digits."""
    key = record.get("answerKey")
    return str(key) if isinstance(key, int) and not isinstance(key, bool) else record.text("answerKey")


def _labelled(record: Record, task: str, item_id: str, context: str, key: str) -> Item:
    """Make an item of labelled choices: lists `choices.text` and `choices.label` (the hub), or a list of objects."""
    nested = _is_nested(record)
    field = "question.choices" if nested else "choices"
    found = record.get(field)
    if isinstance(found, list | tuple) and all(isinstance(choice, Mapping) for choice in found):
        # turn the objects into the hub's two lists, so that both forms are checked, and named in errors, alike
        lists = {"choices": {name: [choice.get(name) for choice in found] for name in ("text", "label")}}
        record = Record({**record.fields, **({"question": lists} if nested else lists)}, record.where)
    choices = record.texts(f"{field}.text", at_least=2)
    labels = record.texts(f"{field}.label", at_least=2)
    if len(labels) != len(choices):
        record.fail("choices.label", f"{len(labels)} labels for {len(choices)} choices")
    if labels.count(key) != 1:
        record.fail("answerKey", f"{shown(key)} is not exactly one of the choices' labels ({', '.join(labels)})")
    return make_item(task, item_id, (context,) * len(choices), choices, labels.index(key))


def read_piqa(record: Record, task: str, item_id: str) -> Item:
    """Choose the better of two solutions. Source: lm-evaluation-harness, `piqa/piqa.yaml`."""
    context = f"Question: {record.text('goal')}\nAnswer:"
    choices = (record.text("sol1"), record.text("sol2"))
    return make_item(task, item_id, (context, context), choices, record.choice_index("label", 2))


def read_winogrande(record: Record, task: str, item_id: str) -> Item:
    """Score what follows the gap, given each filling. Source: lm-evaluation-harness, `preprocess_winogrande.py`."""
    sentence = record.text("sentence")
    before, gap, after = sentence.partition("_")
    if not gap or not after.strip():
        record.fail("sentence", "no gap (_) with text after it")
    options = [record.text(name) for name in ("option1", "option2")]
    answer = record.get("answer")
    if answer not in ("1", "2", 1, 2) or isinstance(answer, bool | float):
        hint = "the test split has no answers: use validation" if answer == "" else ""
        record.fail("answer", f'expected "1" or "2", got {shown(answer)}', hint)
    if any(record.has(name) for name in ("id", "qID")):
        cluster = twin_cluster(item_id)
    else:  # the hub has no ids: twin sentences have the same options and the same first two words
        key = json.dumps([sorted(options), sentence.split()[:2]])
        cluster = "twins-" + hashlib.sha256(key.encode()).hexdigest()[:16]
    contexts = tuple(before + option for option in options)
    return make_item(task, item_id, contexts, (after.strip(),) * 2, int(answer) - 1, cluster)


def twin_cluster(item_id: str) -> str:
    """Give twin sentences one cluster: their ids differ only in the final -1 or -2."""
    return item_id[:-2] if item_id[-2:] in ("-1", "-2") and len(item_id) > 2 else item_id


_ALL = (
    Benchmark("boolq", "aps/super_glue", "boolq", "validation", "acc", read_boolq),
    Benchmark("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", "acc_norm", read_arc),
    Benchmark("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", "acc_norm", read_arc),
    Benchmark("piqa", "baber/piqa", None, "validation", "acc_norm", read_piqa),
    Benchmark("winogrande", "allenai/winogrande", "winogrande_xl", "validation", "acc", read_winogrande),
    Benchmark("openbookqa", "allenai/openbookqa", "main", "test", "acc_norm", read_openbookqa),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
