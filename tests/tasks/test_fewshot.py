"""Few-shot examples: fixed, formatted as lm-evaluation-harness does, never the item itself."""

from __future__ import annotations

import pytest

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks import load_tasks


@pytest.fixture
def trained(data_dir, records, jsonl):
    for name, several in records.items():
        extra = [{**record, "id": f"train-{n}"} for n, record in enumerate(several)]
        jsonl(data_dir / f"{name}.train.jsonl", extra)
    return data_dir


def test_examples_stand_before_the_question_with_their_answers(data_dir, records, jsonl):
    example = {**records["arc_easy"][1], "question": "Which one burns?", "answerKey": "4"}
    path = jsonl(data_dir / "shots.jsonl", [example, example, records["arc_easy"][1]])
    (task,) = load_tasks(["arc_easy"], data_dir=data_dir, fewshot=1, fewshot_file=path)
    shot = "Question: Which one burns?\nAnswer: ash\n\n"
    assert task.shared_prefix == shot
    assert task.items[0].contexts[0] == shot + "Question: Which of these is a metal?\nAnswer:"
    assert task.source["fewshot"] == 1


def test_a_gap_example_is_filled_with_the_right_option(data_dir, records, jsonl):
    path = jsonl(data_dir / "shots.jsonl", records["winogrande"])
    record = {**records["winogrande"][0], "sentence": "The pen broke as _ was old."}
    jsonl(data_dir / "winogrande.jsonl", [record])
    (task,) = load_tasks(["winogrande"], data_dir=data_dir, fewshot=2, fewshot_file=path)
    assert task.items[0].contexts[1] == (
        "The cup fell off the shelf because the shelf was slippery.\n\n"
        "The cup fell off the shelf because the cup was pushed.\n\n"
        "The pen broke as the shelf"
    )


def test_an_item_never_sees_itself(trained):
    (task,) = load_tasks(["boolq"], data_dir=trained, fewshot=2)
    (plain,) = load_tasks(["boolq"], data_dir=trained)
    for item, bare in zip(task.items, plain.items, strict=True):
        assert item.contexts[0].endswith("\n\n" + bare.contexts[0])
        assert item.contexts[0].count(bare.contexts[0]) == 1
        assert item.contexts[0].count("Answer:") == 3
    assert task.items[2].contexts[0].startswith(task.shared_prefix)


def test_the_fingerprint_tells_examples_apart(trained):
    prints = {load_tasks(["boolq"], data_dir=trained, fewshot=n)[0].source["fingerprint"] for n in (0, 1, 2)}
    assert len(prints) == 3


def test_too_few_examples_are_counted(trained):
    with pytest.raises(TaskError, match="4 few-shot examples are asked for and there are 3"):
        load_tasks(["boolq"], data_dir=trained, fewshot=4)


def test_an_item_that_would_leave_too_few_is_refused(trained):
    with pytest.raises(TaskError, match="3 few-shot examples are asked for and there are 2"):
        load_tasks(["boolq"], data_dir=trained, fewshot=3)


def test_a_broken_example_is_named_by_its_place(trained, records, jsonl):
    jsonl(trained / "piqa.train.jsonl", [{**records["piqa"][0], "label": 5}])
    with pytest.raises(TaskError, match=r"piqa\.train\.jsonl, line 1, field 'label'"):
        load_tasks(["piqa"], data_dir=trained, fewshot=1)


def test_missing_training_data_are_named(data_dir):
    with pytest.raises(TaskError, match=r"boolq\.train\.jsonl is missing") as caught:
        load_tasks(["boolq"], data_dir=data_dir, fewshot=1)
    assert "--fewshot-file" in caught.value.hint


def test_the_built_in_task_asks_for_a_file(tmp_path, jsonl):
    with pytest.raises(TaskError, match="quick has no training examples"):
        load_tasks(["quick"], fewshot=1)
    path = jsonl(tmp_path / "shots.jsonl", [{"context": "A wheel is", "choices": ["round", "sour"], "gold": 0}])
    (task,) = load_tasks(["quick"], fewshot=1, fewshot_file=path)
    assert task.shared_prefix == "A wheel is round\n\n"


def test_a_negative_number_is_refused(data_dir):
    with pytest.raises(UsageError, match="negative"):
        load_tasks(["boolq"], data_dir=data_dir, fewshot=-1)
