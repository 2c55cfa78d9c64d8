"""The six benchmarks: contexts, continuations, gold, ids and clusters by lm-evaluation-harness' prompts."""

from __future__ import annotations

import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import BENCHMARKS, load_tasks
from lowmem_layers.tasks.benchmarks import twin_cluster


def items_of(name, data_dir):
    (task,) = load_tasks([name], data_dir=data_dir)
    return task.items


def test_boolq_asks_about_the_passage(data_dir):
    first, second, third = items_of("boolq", data_dir)
    assert first.contexts[0] == "Lamp -- A lamp gives light.\nQuestion: does a lamp give light?\nAnswer:"
    assert first.continuations == (" no", " yes")
    assert (first.gold, second.gold, third.gold) == (1, 0, 1)
    assert first.choice_chars == (2, 3)
    assert first.cluster == second.cluster != third.cluster
    assert (first.id, third.id) == ("b0", "7")


def test_arc_takes_letters_and_numbers_and_any_number_of_choices(data_dir):
    first, second = items_of("arc_challenge", data_dir)
    assert first.contexts == ("Question: Which of these is a metal?\nAnswer:",) * 3
    assert first.continuations == (" wood", " tin", " wool")
    assert (first.gold, second.gold, len(second.continuations)) == (1, 1, 5)
    assert first.cluster == "q-1"


def test_openbookqa_completes_the_stem_and_strips_its_key_on_the_left(data_dir):
    (item,) = items_of("openbookqa", data_dir)
    assert item.contexts[0] == "A lamp that is switched on gives"
    assert (item.continuations[0], item.gold) == (" light", 0)


def test_piqa_strips_nothing_and_names_items_by_their_place(data_dir):
    (item,) = items_of("piqa", data_dir)
    assert item.contexts[0] == "Question: To warm soup,\nAnswer:"
    assert item.continuations[0] == " put the pot on the stove. "
    assert item.choice_chars[0] == len("put the pot on the stove. ")
    assert item.id == "piqa-0"


def test_winogrande_scores_one_continuation_after_two_contexts(data_dir):
    first, second = items_of("winogrande", data_dir)
    assert first.contexts == (
        "The cup fell off the shelf because the cup",
        "The cup fell off the shelf because the shelf",
    )
    assert first.continuations == (" was slippery.",) * 2
    assert second.continuations == (" was pushed.",) * 2
    assert (first.gold, second.gold) == (1, 0)
    assert first.cluster == second.cluster == "AB"


def test_winogrande_pairs_twins_by_their_text_where_the_ids_are_gone(tmp_path, records, jsonl):
    without = [{key: value for key, value in record.items() if key != "id"} for record in records["winogrande"]]
    other = {**without[0], "sentence": "Nobody knew whether _ was old."}
    jsonl(tmp_path / "winogrande.jsonl", [*without, other])
    first, second, third = items_of("winogrande", tmp_path)
    assert first.cluster == second.cluster != third.cluster
    assert [item.id for item in (first, second, third)] == ["winogrande-0", "winogrande-1", "winogrande-2"]


@pytest.mark.parametrize(("item_id", "cluster"), [("AB-1", "AB"), ("AB-2", "AB"), ("AB-3", "AB-3"), ("-1", "-1")])
def test_twin_ids_differ_in_their_last_sign_only(item_id, cluster):
    assert twin_cluster(item_id) == cluster


def test_metrics_are_those_of_the_published_study():
    assert {name: b.metric for name, b in BENCHMARKS.items()} == {
        "boolq": "acc",
        "arc_easy": "acc_norm",
        "arc_challenge": "acc_norm",
        "piqa": "acc_norm",
        "winogrande": "acc",
        "openbookqa": "acc_norm",
    }


def test_chance_is_the_mean_over_items(data_dir):
    (task,) = load_tasks(["arc_easy"], data_dir=data_dir)
    assert task.chance == pytest.approx((1 / 3 + 1 / 5) / 2)


BROKEN = [
    ("boolq", {"question": None}, "question"),
    ("boolq", {"question": 3}, "question"),
    ("boolq", {"question": "  "}, "question"),
    ("boolq", {"answer": "yes"}, "answer"),
    ("boolq", {"label": 2}, "label"),
    ("boolq", {"answer": None}, "label"),
    ("arc_easy", {"choices": ["wood", "tin"]}, "choices.text"),
    ("arc_easy", {"choices": {"text": "wood", "label": ["A"]}}, "choices.text"),
    ("arc_easy", {"choices": {"text": ["wood", ""], "label": ["A", "B"]}}, "choices.text[1]"),
    ("arc_easy", {"choices": {"text": ["wood"], "label": ["A"]}}, "choices.text"),
    ("arc_easy", {"choices": {"text": ["wood", "tin"], "label": ["A"]}}, "choices.label"),
    ("arc_easy", {"choices": {"text": ["wood", "tin"], "label": ["A", "B", "C"]}}, "choices.label"),
    ("arc_easy", {"choices": {"text": ["wood", "tin"], "label": ["B", "B"]}}, "answerKey"),
    ("arc_easy", {"answerKey": "Z"}, "answerKey"),
    ("arc_easy", {"answerKey": 1}, "answerKey"),
    ("piqa", {"label": -1}, "label"),
    ("piqa", {"label": 1.0}, "label"),
    ("piqa", {"label": "one"}, "label"),
    ("piqa", {"label": "2"}, "label"),
    ("piqa", {"label": True}, "label"),
    ("piqa", {"sol2": ""}, "sol2"),
    ("piqa", {"goal": "half a pair \ud800"}, "goal"),
    ("piqa", {"id": ["x"]}, "id"),
    ("piqa", {"id": True}, "id"),
    ("piqa", {"id": "bell \a"}, "id"),
    ("winogrande", {"sentence": "no gap here"}, "sentence"),
    ("winogrande", {"sentence": "the gap ends it _ "}, "sentence"),
    ("winogrande", {"answer": ""}, "answer"),
    ("winogrande", {"answer": 0}, "answer"),
    ("winogrande", {"answer": True}, "answer"),
    ("arc_easy", {"choices": [{"text": "wood", "label": "A"}, {"text": "tin"}]}, "choices.label[1]"),
    ("arc_easy", {"question": {"stem": "Which?", "choices": []}}, "question.choices.text"),
    ("arc_easy", {"question": {"stem": " ", "choices": []}}, "question.stem"),
    ("openbookqa", {"question_stem": None}, "question_stem"),
    ("winogrande", {"option1": {}}, "option1"),
]


@pytest.mark.parametrize(("name", "change", "field"), BROKEN)
def test_a_broken_record_is_refused_with_file_line_and_field(name, change, field, tmp_path, records, jsonl):
    record = {**records[name][0], **change}
    jsonl(tmp_path / f"{name}.jsonl", [*records[name][1:], record])
    line = len(records[name])
    with pytest.raises(TaskError) as caught:
        items_of(name, tmp_path)
    assert f"{name}.jsonl, line {line}, field {field!r}" in caught.value.message
    assert caught.value.hint


def authors_own(record, stem):
    """Write a record as ARC's and OpenBookQA's authors publish it, not as the hub does."""
    pairs = zip(record["choices"]["text"], record["choices"]["label"], strict=True)
    choices = [{"text": text, "label": label} for text, label in pairs]
    return {
        "id": record["id"],
        "question": {"stem": record[stem], "choices": choices},
        "answerKey": record["answerKey"],
    }


def listed(record, stem):
    """Write the choices as a list of objects, as data frames do."""
    nested = authors_own(record, stem)["question"]["choices"]
    return {**record, "choices": nested}


@pytest.mark.parametrize("form", [authors_own, listed])
@pytest.mark.parametrize(("name", "stem"), [("arc_easy", "question"), ("openbookqa", "question_stem")])
def test_other_writings_of_choices_give_the_same_items(form, name, stem, tmp_path, data_dir, records, jsonl):
    other = tmp_path / "other"
    other.mkdir()
    jsonl(other / f"{name}.jsonl", [form(record, stem) for record in records[name]])
    assert items_of(name, other) == items_of(name, data_dir)


@pytest.mark.parametrize(
    ("name", "change", "gold"),
    [
        ("boolq", {"label": True}, 1),  # SuperGLUE's own files
        ("piqa", {"label": "1"}, 1),
        ("winogrande", {"answer": 2}, 1),
        ("arc_easy", {"choices": {"text": ["wood", "tin"], "label": ["1", "2"]}, "answerKey": 2}, 1),
    ],
)
def test_golds_of_another_type_are_understood(name, change, gold, tmp_path, records, jsonl):
    jsonl(tmp_path / f"{name}.jsonl", [{**records[name][0], **change}])
    assert items_of(name, tmp_path)[0].gold == gold


def test_control_characters_in_a_text_are_kept_as_they_are(tmp_path, records, jsonl):
    record = {**records["arc_easy"][0], "question": "Which \x02 of these?"}
    jsonl(tmp_path / "arc_easy.jsonl", [record])
    assert "\x02" in items_of("arc_easy", tmp_path)[0].contexts[0]
