"""Options that would change nothing are refused by name; those that do something pass."""

from __future__ import annotations

import pytest

from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.errors import UsageError
from lowmem_layers.record.spec import StudySpec
from lowmem_layers.record.unused import check_used


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"data_dir": "d"}, "--data-dir changes nothing for --tasks quick", "boolq, arc_easy"),
        ({"data_dir": "d", "tasks": ("mine.toml",)}, "--data-dir changes nothing for --tasks mine.toml", "its own"),
        ({"window": 64}, "--window changes nothing for --tasks quick", "text:FILE"),
        ({"stride": 64, "preset": "paper"}, "--stride changes nothing for --tasks boolq,arc_easy", "text:FILE"),
        ({"include_path": "f"}, "--include-path changes nothing", "lm_eval:NAME"),
        ({"trust_task_code": True, "tasks": ("lm_eval:x",)}, "nothing without --include-path", "leave it out"),
        ({"fewshot_file": "f.jsonl"}, "--fewshot-file is not read", "--fewshot K"),
        ({"fewshot_file": "f.jsonl", "fewshot": 2, "tasks": ("lm_eval:x",)}, "--fewshot-file is not read", "its own"),
        ({"fewshot_file": "f.jsonl", "fewshot": 0, "tasks": ("a.toml",)}, "--fewshot-file is not read", "--fewshot K"),
        ({"revision": "v2"}, "--revision is of a model on the Hub, and SmolLM2", "leave it out"),
        ({"revision": "v2", "model": "."}, "--revision is of a model on the Hub, and . lies here", "leave it out"),
        ({"max_gpu_memory": 5, "device": "cpu"}, "--max-gpu-memory limits no GPU", "--max-cpu-memory"),
    ],
)
def test_what_would_change_nothing_is_refused(options, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        check_used(StudySpec(**options))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_dir": "d", "tasks": ("quick", "piqa"), "fewshot": 1, "fewshot_file": "f"},
        {"data_dir": "d", "preset": "paper"},
        {"window": 64, "stride": 32, "tasks": ("quick", "text:a.txt")},
        {"include_path": "f", "trust_task_code": True, "tasks": ("lm_eval:x",)},
        {"fewshot_file": "f", "tasks": ("mine.yaml",)},
        {"revision": "v2", "model": "owner/name"},
        {"max_gpu_memory": 5},
    ],
)
def test_what_does_something_passes(options):
    check_used(StudySpec(**options))


@pytest.mark.parametrize("command", [["run"], ["plan"], ["tasks", "show", "quick"]])
def test_each_command_looks(command, capfd):
    assert run_command_line([*command, "--data-dir", "d"]) == 2
    assert capfd.readouterr().err.startswith("error: --data-dir changes nothing for --tasks quick\nhint: ")
