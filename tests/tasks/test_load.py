"""Names to tasks: what exists, what is near, limits, ids, fingerprints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks import TASK_NAMES, load_tasks


def test_tasks_come_in_the_order_given(data_dir):
    tasks = load_tasks(["piqa", "quick", "boolq"], data_dir=data_dir, limit=2)
    assert [(task.name, len(task.items)) for task in tasks] == [("piqa", 1), ("quick", 2), ("boolq", 2)]


def test_the_limit_keeps_the_first_items_and_reads_no_further(tmp_path, records, jsonl):
    path = jsonl(tmp_path / "boolq.jsonl", records["boolq"])
    with path.open("a") as file:
        file.write("not JSON\n")
    (task,) = load_tasks(["boolq"], data_dir=tmp_path, limit=3)
    assert [item.id for item in task.items] == ["b0", "b1", "7"]
    with pytest.raises(TaskError, match="line 4"):
        load_tasks(["boolq"], data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "near"), [("bool", "boolq"), ("arc-easy", "arc_easy"), ("winogrand", "winogrande"), ("Quick", "quick")]
)
def test_an_unknown_name_gets_the_nearest_ones(name, near):
    with pytest.raises(TaskError, match="no task") as caught:
        load_tasks([name])
    assert caught.value.hint.startswith(f"did you mean {near}")
    assert all(known in caught.value.hint for known in TASK_NAMES)


def test_a_name_unlike_any_gets_the_list_alone():
    with pytest.raises(TaskError) as caught:
        load_tasks(["zzz"])
    assert caught.value.hint.startswith("tasks: quick")


def test_a_repeated_name_is_refused(data_dir):
    with pytest.raises(TaskError, match="named twice"):
        load_tasks(["boolq", "boolq"], data_dir=data_dir)


def test_no_name_is_refused():
    with pytest.raises(TaskError, match="no task"):
        load_tasks([])


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_without_items_is_refused(limit):
    with pytest.raises(UsageError, match="leaves no items"):
        load_tasks(["quick"], limit=limit)


def test_a_repeated_id_names_both_places(tmp_path, records, jsonl):
    jsonl(tmp_path / "boolq.jsonl", [*records["boolq"], records["boolq"][0]])
    with pytest.raises(TaskError) as caught:
        load_tasks(["boolq"], data_dir=tmp_path)
    assert caught.value.message == "boolq.jsonl, line 4, field 'id': 'b0' was already used in boolq.jsonl, line 1"


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_file_is_refused(content, tmp_path):
    (tmp_path / "boolq.jsonl").write_text(content)
    with pytest.raises(TaskError, match="no items for boolq"):
        load_tasks(["boolq"], data_dir=tmp_path)


def test_a_missing_file_says_what_is_there(tmp_path):
    (tmp_path / "piqa.jsonl").write_text("{}")
    with pytest.raises(TaskError, match=r"no data file .*boolq\.jsonl") as caught:
        load_tasks(["boolq"], data_dir=tmp_path)
    assert "piqa.jsonl" in caught.value.hint


@pytest.mark.parametrize("file", ["valid.jsonl", "test.jsonl"])
@pytest.mark.parametrize(("folder", "hint"), [("boolq", "give --data-dir"), ("b", "name the folder boolq, and give")])
def test_a_task_s_own_folder_says_which_folder_is_meant(folder, hint, file, tmp_path):
    own = tmp_path / folder
    own.mkdir()
    (own / file).write_text("{}")
    with pytest.raises(TaskError, match=rf"holds {file} itself.* the folder above a folder boolq") as caught:
        load_tasks(["boolq"], data_dir=own)
    assert caught.value.hint.startswith(hint)
    assert caught.value.hint.endswith(str(tmp_path))


def test_a_data_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(TaskError, match="not a folder"):
        load_tasks(["boolq"], data_dir=tmp_path / "nowhere")


def test_the_fingerprint_follows_the_items(tmp_path, data_dir, records, jsonl):
    (one,) = load_tasks(["boolq"], data_dir=data_dir)
    (again,) = load_tasks(["boolq"], data_dir=data_dir)
    (fewer,) = load_tasks(["boolq"], data_dir=data_dir, limit=2)
    records["boolq"][1]["answer"] = True
    other_dir = tmp_path / "other"
    other_dir.mkdir()
    jsonl(other_dir / "boolq.jsonl", records["boolq"])
    (changed,) = load_tasks(["boolq"], data_dir=other_dir)
    prints = [task.source["fingerprint"] for task in (one, again, fewer, changed)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert all(len(print_) == 64 for print_ in prints)


def test_importing_the_room_imports_nothing_heavy():
    heavy = "torch", "transformers", "datasets", "lm_eval", "pyarrow", "yaml"
    code = f"import lowmem_layers.tasks, sys; sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
