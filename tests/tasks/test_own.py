"""Tasks of the user's own: both forms, and every field validated by its name."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowmem_layers import StudySpec
from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.study.prepare import read_tasks
from lowmem_layers.tasks import load_tasks
from lowmem_layers.tasks.own import read_own_task

PLAIN = """
data = "items.jsonl"
context = "Q: {{ q }}\\nA:"
choices = "options"
gold = "answer"
"""
ROWS = [
    {"q": "Is snow warm?", "options": ["yes", "no"], "answer": 1, "topic": "snow"},
    {"q": "Is fire hot?", "options": ["yes", "no", "blue"], "answer": "yes", "topic": "fire"},
]


@pytest.fixture
def write(tmp_path, jsonl):
    jsonl(tmp_path / "items.jsonl", ROWS)

    def written(text, name="mine.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return written


def test_a_task_file_becomes_a_task(write):
    (task,) = load_tasks([write(PLAIN)])
    first, second = task.items
    assert (task.name, task.metric, task.source["kind"]) == ("mine", "acc", "task file")
    assert first.contexts == ("Q: Is snow warm?\nA:",) * 2
    assert first.continuations == (" yes", " no")
    assert (first.gold, second.gold) == (1, 0)
    assert [item.id for item in task.items] == ["mine-0", "mine-1"]


def test_choices_may_be_templates_and_items_may_be_named(write):
    text = PLAIN.replace('"options"', '["{{ options[0] }}!", "{{ options[1] }}!"]').replace('"answer"', "0")
    text += 'name = "warmth"\nmetric = "acc_norm"\nid = "{{ topic }}"\ncluster = "weather"\n'
    (task,) = load_tasks([write(text)])
    assert (task.name, task.metric) == ("warmth", "acc_norm")
    assert task.items[0].continuations == (" yes!", " no!")
    assert [(item.id, item.cluster) for item in task.items] == [("snow", "weather"), ("fire", "weather")]


def test_choices_may_stand_in_the_contexts(write):
    text = """
        data = "items.jsonl"
        contexts = ["{{ topic }} is warm", "{{ topic }} is cold"]
        continuation = "to the hand"
        gold = "{{ 1 if topic == 'snow' else 0 }}"
    """
    (task,) = load_tasks([write(text)])
    assert task.items[0].contexts == ("snow is warm", "snow is cold")
    assert task.items[0].continuations == (" to the hand",) * 2
    assert [item.gold for item in task.items] == [1, 0]


def test_yaml_is_read_too(write):
    pytest.importorskip("yaml")
    text = "data: items.jsonl\ncontext: 'Q: {{ q }}'\nchoices: options\ngold: answer\nmetric: margin\n"
    (task,) = load_tasks([write(text, "mine.yaml")])
    assert (task.name, task.metric, task.items[0].gold) == ("mine", "margin", 1)


def test_examples_come_from_the_training_file(write, tmp_path, jsonl):
    jsonl(tmp_path / "train.jsonl", [{"q": "Is ice cold?", "options": ["yes", "no"], "answer": 0}])
    (task,) = load_tasks([write(PLAIN + 'train = "train.jsonl"\nfewshot = 1\n')])
    assert task.shared_prefix == "Q: Is ice cold?\nA: yes\n\n"
    (without,) = load_tasks([write(PLAIN + 'train = "train.jsonl"\nfewshot = 1\n')], fewshot=0)
    assert without.shared_prefix == ""


def test_data_may_be_a_folder_of_splits(write, tmp_path, jsonl):
    (tmp_path / "copy").mkdir()
    jsonl(tmp_path / "copy" / "dev.jsonl", ROWS[:1])
    jsonl(tmp_path / "copy" / "train.jsonl", ROWS[1:])
    text = PLAIN.replace('"items.jsonl"', '"copy"') + 'split = "dev"\nfewshot = 1\n'
    (task,) = load_tasks([write(text)])
    assert len(task.items) == 1
    assert task.shared_prefix == "Q: Is fire hot?\nA: yes\n\n"


BROKEN = [
    ("metrik = 'acc'\n" + PLAIN, "'metrik'", "did you mean metric"),
    (PLAIN + "[more]\nx = 1\n", "'more'", "fields: "),
    (PLAIN.replace('data = "items.jsonl"', ""), "'data'", ""),
    (PLAIN + 'hub = "a/b"\n', "'data'", ""),
    (PLAIN.replace('data = "items.jsonl"', "data = 3"), "'data'", ""),
    (PLAIN.replace('gold = "answer"', ""), "'gold'", ""),
    (PLAIN.replace('gold = "answer"', "gold = true"), "'gold'", ""),
    (PLAIN.replace('gold = "answer"', "gold = 2"), "'gold'", ""),
    (PLAIN.replace('gold = "answer"', 'gold = "topic"'), "'gold'", "index"),
    (PLAIN.replace('gold = "answer"', 'gold = "q +"'), "'gold'", ""),
    (PLAIN.replace('choices = "options"', ""), "'choices'", ""),
    (PLAIN.replace('choices = "options"', 'choices = "q"'), "'choices'", ""),
    (PLAIN.replace('choices = "options"', "choices = []"), "'choices'", ""),
    (PLAIN.replace('choices = "options"', "choices = ['a', 2]"), "'choices[1]'", ""),
    (PLAIN.replace('choices = "options"', "choices = ['a', '']"), "'choices[1]'", ""),
    (PLAIN.replace('"options"', '["a", "{{ nothing }}"]'), "'choices[1]'", "answer, options, q, topic"),
    (PLAIN + 'continuation = "x"\n', "'continuation'", ""),
    (PLAIN + 'metric = "f1"\n', "'metric'", "acc_norm"),
    (PLAIN + 'metric = "acc_nrm"\n', "'metric'", "did you mean acc_norm? "),
    (PLAIN + "fewshot = -1\n", "'fewshot'", ""),
    (PLAIN + "fewshot = 1\n", "'train'", ""),
    (PLAIN + "split = ''\n", "'split'", ""),
    (PLAIN + 'id = "same"\n', "'id'", "unique"),
    (PLAIN + 'id = "{{ 1 if q else 2 }}\\u0007"\n', "'id'", ""),
]


BY_CONTEXT = """
data = "items.jsonl"
contexts = ["{{ q }} Yes,", "{{ q }} No,"]
continuation = "{{ topic }}"
gold = 0
"""
BROKEN += [
    (BY_CONTEXT.replace('"{{ topic }}"', "\"{{ '' }}\""), "'continuation'", ""),
    (BY_CONTEXT.replace("{{ q }} No,", "{{ '' }}"), "'contexts'", ""),
    (BY_CONTEXT + 'choices = "options"\n', "'choices'", ""),
]


@pytest.mark.parametrize(("text", "field", "hint"), BROKEN)
def test_a_broken_field_is_named(text, field, hint, write):
    with pytest.raises(TaskError) as caught:
        load_tasks([write(text)])
    assert f"field {field}" in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


@pytest.mark.parametrize("text", ["data = ", "a = 1\na = 2", "\x00", "[" * 3000])
def test_a_file_that_is_no_toml_is_refused(text, write):
    with pytest.raises(TaskError, match=r"mine\.toml"):
        load_tasks([write(text)])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "42", "a: !!python/object/apply:os.getcwd []", ""])
def test_a_file_that_is_no_yaml_mapping_is_refused(text, write):
    pytest.importorskip("yaml")
    with pytest.raises(TaskError, match=r"mine\.yaml"):
        load_tasks([write(text, "mine.yaml")])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TaskError, match="no task file"):
        load_tasks([str(tmp_path / "nowhere.toml")])


def test_two_files_of_one_name_are_refused(write):
    with pytest.raises(TaskError, match="named twice"):
        load_tasks([write(PLAIN), write(PLAIN + 'name = "mine"\n', "other.toml")])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(text=st.text(max_size=60) | st.text(st.sampled_from("datconexhigl={}[]\"'\n 1."), max_size=60))
def test_any_text_is_read_or_refused(text, tmp_path):
    path = tmp_path / "any.toml"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(TaskError):
        read_own_task(path)


def test_a_metric_that_the_items_do_not_allow_is_refused_before_anything_is_measured(write, tmp_path, jsonl):
    """A run of items with one choice each was measured to its end, and failed there."""

    jsonl(tmp_path / "one.jsonl", [{"q": "Tin is a", "o": ["metal"]}, {"q": "Rain is", "o": ["wet"]}])
    text = 'data = "one.jsonl"\ncontext = "{{ q }}"\nchoices = "o"\ngold = 0\n'
    for said, message in (("acc_norm", "acc_norm compares choices, and some items of mine"), ("greedy", "greedy asks")):
        path = write(text + f'metric = "{said}"\n')
        with pytest.raises(UsageError, match=message):
            read_tasks(StudySpec(tasks=(path,), value="loglikelihood").resolved())
    path = write(text + 'metric = "loglikelihood"\n')
    assert len(read_tasks(StudySpec(tasks=(path,)).resolved())[0].items) == 2
    with pytest.raises(UsageError, match="acc compares choices"):
        read_tasks(StudySpec(tasks=(path,), value="acc").resolved())


def test_an_item_that_is_there_twice_is_one_observation(write, tmp_path, jsonl):
    """Twice the same items made intervals narrower by a factor of √2."""
    jsonl(tmp_path / "items.jsonl", [*ROWS, ROWS[0], {**ROWS[0], "options": ["no", "yes"]}])
    (task,) = load_tasks([write(PLAIN)])
    assert [item.cluster for item in task.items] == ["mine-0", "mine-1", "mine-0", "mine-3"]
    assert len({item.id for item in task.items}) == 4
    (given,) = load_tasks([write(PLAIN + 'cluster = "{{ topic }}"\n')])
    assert [item.cluster for item in given.items] == ["snow", "fire", "snow", "snow"]
