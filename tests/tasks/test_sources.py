"""Local copies and the hub: parquet, JSON, saved data sets, and what is said without a network."""

from __future__ import annotations

import json

import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks import load_tasks
from lowmem_layers.tasks.sources import HubSource, folder_records, hub_records, read_file

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def fingerprint(name, folder):
    (task,) = load_tasks([name], data_dir=folder)
    return task.source["fingerprint"]


def saved(records):
    return datasets.Dataset.from_list(records)


def as_parquet(folder, name, records):
    path = folder / name / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    saved(records).to_parquet(str(path))
    return folder


def as_hub_copy(folder, name, records):
    path = folder / "ai2_arc" / "ARC-Easy" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    saved(records).to_parquet(str(path))
    return folder


def inside_hub_copy(folder, name, records):
    return as_hub_copy(folder, name, records) / "ai2_arc"


def as_json_list(folder, name, records):
    (folder / f"{name}.json").write_text(json.dumps(records))
    return folder


def as_json_lines_in_folder(folder, name, records):
    (folder / name / "data").mkdir(parents=True)
    (folder / name / "data" / "test.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def as_json_list_under_another_name(folder, name, records):
    (folder / f"{name}.jsonl").write_text(json.dumps(records, indent=1))
    return folder


def in_the_only_subfolder(folder, name, records):
    as_parquet(folder / name, "plain_text", records)
    return folder


def of_the_configuration_alone(folder, name, records):
    as_parquet(folder, "ARC-Easy", records)
    return folder


def as_saved_dict(folder, name, records):
    datasets.DatasetDict({"train": saved(records[:1]), "test": saved(records)}).save_to_disk(str(folder / name))
    return folder


def as_saved_set(folder, name, records):
    saved(records).save_to_disk(str(folder / name))
    return folder


FORMS = [
    as_parquet,
    as_hub_copy,
    inside_hub_copy,
    as_json_list,
    as_json_lines_in_folder,
    as_json_list_under_another_name,
    in_the_only_subfolder,
    of_the_configuration_alone,
    as_saved_dict,
    as_saved_set,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_copy_gives_the_same_items(form, tmp_path, data_dir, records):
    folder = tmp_path / "copy"
    folder.mkdir()
    found = form(folder, "arc_easy", records["arc_easy"])
    assert fingerprint("arc_easy", found) == fingerprint("arc_easy", data_dir)


def test_training_examples_come_from_the_copys_own_split(tmp_path, records):
    folder = as_saved_dict(tmp_path / "x", "arc_easy", records["arc_easy"])
    (task,) = load_tasks(["arc_easy"], data_dir=folder, fewshot=0)
    with pytest.raises(TaskError, match="1 few-shot examples are asked for and there are 0"):
        load_tasks(["arc_easy"], data_dir=folder, fewshot=1)  # the one example is an item itself
    assert len(task.items) == 2


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_files_go_by_other_names(name, tmp_path, records, jsonl):
    (tmp_path / "piqa").mkdir()
    jsonl(tmp_path / "piqa" / f"{name}.jsonl", records["piqa"])
    jsonl(tmp_path / "piqa" / "train.jsonl", [{}])
    (task,) = load_tasks(["piqa"], data_dir=tmp_path)
    assert len(task.items) == 1


@pytest.mark.parametrize("place", ["piqa.jsonl", "piqa/valid.jsonl", "piqa/dev.jsonl"])
@pytest.mark.parametrize("own", [True, False])
def test_piqa_is_read_in_its_authors_two_files(place, own, tmp_path, records, jsonl):
    several = [{**records["piqa"][0], "label": place % 2} for place in range(3)]
    (tmp_path / "one").mkdir()
    jsonl(tmp_path / "one" / "piqa.jsonl", several)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    jsonl(path, several if own else [{key: one[key] for key in ("goal", "sol1", "sol2")} for one in several])
    path.with_name(f"{path.stem}-labels.lst").write_text("0\n1\n0\n")
    assert fingerprint("piqa", tmp_path) == fingerprint("piqa", tmp_path / "one")
    (first,) = load_tasks(["piqa"], data_dir=tmp_path, limit=2)
    assert [item.gold for item in first.items] == [0, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("0\n1\n", r"piqa-labels\.lst has 2 labels for the 3 items of piqa\.jsonl"),
        ("0\n1\n0\n0\n", "has 4 labels for the 3 items"),
        ("", "has 0 labels for the 3 items"),
        ("0\n2\n0", r"line 2 \(piqa-labels\.lst, line 2\), field 'label': 2 is outside the 2 choices"),
        ("0\n\n0", "field 'label': expected a whole number from 0 to 1, got ''"),
        ("0 1\n1\n0", "field 'label': expected a whole number from 0 to 1, got '0 1'"),
        ("0\n\u0661\n0", "field 'label': expected a whole number"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, said, tmp_path, jsonl):
    jsonl(tmp_path / "piqa.jsonl", [{"goal": "To warm soup,", "sol1": "a", "sol2": "b"}] * 3)
    (tmp_path / "piqa-labels.lst").write_text(labels, encoding="utf-8")
    with pytest.raises(TaskError, match=said) as caught:
        load_tasks(["piqa"], data_dir=tmp_path)
    assert "\n" not in caught.value.message


def test_two_labels_that_contradict_each_other_are_refused(tmp_path, records, jsonl):
    jsonl(tmp_path / "piqa.jsonl", records["piqa"])
    (tmp_path / "piqa-labels.lst").write_text("1\n")
    with pytest.raises(TaskError, match=r"field 'label': 0, but piqa-labels\.lst, line 1 says 1"):
        load_tasks(["piqa"], data_dir=tmp_path)


def test_a_copy_with_the_split_in_several_folders_is_refused(tmp_path, records):
    for name in ("one", "two"):
        as_parquet(tmp_path, name, records["arc_easy"])
    with pytest.raises(TaskError, match="several folders with the split 'test': one, two"):
        folder_records(tmp_path, "test")


def test_a_copy_without_the_split_says_what_it_holds(tmp_path, records):
    folder = as_parquet(tmp_path, "arc_easy", records["arc_easy"])
    with pytest.raises(TaskError, match="no files for the split 'dev'") as caught:
        folder_records(folder / "arc_easy", "dev")
    assert "test-00000-of-00001.parquet" in caught.value.hint
    other = as_saved_dict(tmp_path / "y", "z", records["arc_easy"])
    with pytest.raises(TaskError, match="no split 'dev'") as caught:
        list(folder_records(other / "z", "dev")[0])
    assert "train, test" in caught.value.hint


def test_a_broken_row_of_a_parquet_file_is_named(tmp_path, records):
    records["arc_easy"][1]["answerKey"] = "Z"
    folder = as_parquet(tmp_path, "arc_easy", records["arc_easy"])
    with pytest.raises(TaskError, match=r"test-00000-of-00001\.parquet, row 2, field 'answerKey'"):
        load_tasks(["arc_easy"], data_dir=folder)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.parquet", b"no parquet", "not a readable parquet file"),
        ("a.json", b"[1, 2]", "a.json, entry 1: expected a JSON object"),
        ("a.json", b"[{]", "malformed JSON"),
        ("a.csv", b"a,b", "unknown kind of data file"),
    ],
)
def test_a_damaged_file_is_refused(name, raw, said, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(TaskError, match=said):
        list(read_file(tmp_path / name))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TaskError, match="no data file"):
        list(read_file(tmp_path / "a.parquet"))


def test_a_damaged_saved_set_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(TaskError, match="not a readable saved data set"):
        list(folder_records(tmp_path, "test")[0])


def test_without_network_or_cache_the_fetch_is_spelled_out():
    with pytest.raises(TaskError, match=r"cannot get aps/super_glue \(boolq, validation\)") as caught:
        load_tasks(["boolq"])
    assert "load_dataset('aps/super_glue', 'boolq')" in caught.value.hint
    assert "--data-dir" in caught.value.hint


def test_what_was_fetched_before_is_used_without_a_network(tmp_path, records, data_dir):
    fill_cache(tmp_path / "cache", "allenai___ai2_arc", "ARC-Easy", "test", records["arc_easy"])
    (task,) = load_tasks(["arc_easy"])
    assert task.source["fingerprint"] == fingerprint("arc_easy", data_dir)
    assert task.source["hub"] == "allenai/ai2_arc"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Lay out the hub's own cache, as `hf download` leaves it: files of a repository, nothing prepared."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--allenai--ai2_arc"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_a_repository_in_the_hubs_cache_is_used_without_a_network(hub_cache, records, data_dir):
    as_parquet(hub_cache, "ARC-Easy", records["arc_easy"])
    (task,) = load_tasks(["arc_easy"])
    assert task.source["fingerprint"] == fingerprint("arc_easy", data_dir)


def test_errors_of_the_hubs_network_library_are_refusals_too(monkeypatch):
    class ConnectError(Exception):
        """Neither an OSError nor a ValueError, like that of the hub's client."""

    def fail(*args, **keywords):
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TaskError, match=r"cannot get aps/super_glue .*Name or service not known"):
        load_tasks(["boolq"])


def test_a_split_that_was_not_fetched_is_refused(tmp_path, records):
    fill_cache(tmp_path / "cache", "allenai___ai2_arc", "ARC-Easy", "test", records["arc_easy"])
    with pytest.raises(TaskError, match="cannot get allenai/ai2_arc"):
        list(hub_records(HubSource("allenai/ai2_arc", "ARC-Easy"), "nothing"))


def test_a_task_file_may_name_a_hub_id(tmp_path, records):
    fill_cache(tmp_path / "cache", "someone___questions", "small", "test", records["arc_easy"])
    text = """
        hub = "someone/questions"
        config = "small"
        context = "{{ question }}"
        choices = "choices.text"
        gold = "{{ choices.label.index(answerKey) }}"
    """
    (tmp_path / "mine.toml").write_text(text)
    (task,) = load_tasks([str(tmp_path / "mine.toml")])
    assert [item.gold for item in task.items] == [1, 1]
    assert task.source["hub"] == "someone/questions"
    (tmp_path / "mine.toml").write_text(text.replace("small", "large"))
    with pytest.raises(TaskError, match=r"cannot get someone/questions \(large, test\)"):
        load_tasks([str(tmp_path / "mine.toml")])


def fill_cache(cache, folder, config, split, records):
    """Lay out what `load_dataset` leaves in its cache after a fetch."""
    place = cache / folder / config / "0.0.0" / ("a" * 40)
    place.mkdir(parents=True)
    table = saved(records)
    table.save_to_disk(str(cache / "scratch"))
    (cache / "scratch" / "data-00000-of-00001.arrow").rename(place / f"{folder.split('___')[1]}-{split}.arrow")
    info = table.info
    info.builder_name, info.dataset_name, info.config_name = "parquet", folder.split("___")[1], config
    info.version = datasets.Version("0.0.0")
    info.splits = {split: datasets.SplitInfo(split, num_bytes=1, num_examples=len(records), dataset_name="ai2_arc")}
    info.write_to_directory(str(place))
