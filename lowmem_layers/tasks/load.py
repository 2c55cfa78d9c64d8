"""From the names given to `--tasks` to tasks with their items."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.benchmarks import BENCHMARKS, Benchmark, Reader
from lowmem_layers.tasks.items import Item, Task, chance_level, fingerprint
from lowmem_layers.tasks.quick import QUICK_FILE, read_quick
from lowmem_layers.tasks.records import Record, read_jsonl

TASK_NAMES: tuple[str, ...] = ("quick", *BENCHMARKS)


def load_tasks(names: Sequence[str], *, data_dir: Path | None = None, limit: int | None = None) -> list[Task]:
    """Load tasks by name, in the order given.

    `data_dir` holds TASK.jsonl with the hub's field names, used instead of the hub; `limit` keeps the first
    items of each task.

    Raises:
        TaskError: an unknown or repeated name, or unusable data.
        UsageError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no items", "use 1 or more, or leave it out for all")
    if not names:
        raise TaskError("no task is named", f"tasks: {', '.join(TASK_NAMES)}")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise TaskError(f"task {repeated[0]!r} is named twice", "name each task once")
    return [load_task(name, data_dir=data_dir, limit=limit) for name in names]


def load_task(name: str, *, data_dir: Path | None = None, limit: int | None = None) -> Task:
    """Load one task.

    Raises:
        TaskError: an unknown name, or unusable data.
    """
    if name == "quick":
        items = collect_items(name, read_jsonl(QUICK_FILE), read_quick, ("id",), limit)
        return build_task(name, items, "acc", {"kind": "built-in", "split": None})
    if name in BENCHMARKS:
        return _load_benchmark(BENCHMARKS[name], data_dir, limit)
    raise unknown_task(name)


def unknown_task(name: str) -> TaskError:
    """Say that there is no such task, and which ones are near."""
    near = difflib.get_close_matches(name, TASK_NAMES, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return TaskError(f"there is no task {name!r}", f"{guess}tasks: {', '.join(TASK_NAMES)}")


def _load_benchmark(benchmark: Benchmark, data_dir: Path | None, limit: int | None) -> Task:
    if data_dir is None:
        raise TaskError(f"{benchmark.name} needs its data", f"use --data-dir FOLDER with {benchmark.name}.jsonl")
    path = data_file(data_dir, benchmark.name)
    items = collect_items(benchmark.name, read_jsonl(path), benchmark.read, ("id", "idx", "qID"), limit)
    return build_task(benchmark.name, items, benchmark.metric, {"kind": "file", "file": path.name, "split": None})


def data_file(folder: Path, name: str) -> Path:
    """Find TASK.jsonl in the data folder.

    Raises:
        TaskError: there is no such folder or file.
    """
    if not folder.is_dir():
        raise TaskError(f"--data-dir {folder} is not a folder", "give the folder that holds TASK.jsonl")
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in folder.glob("*.jsonl"))[:12]) or "no .jsonl files"
        raise TaskError(f"no data file {path}", f"the folder holds: {there}")
    return path


def collect_items(
    name: str, records: Iterable[Record], read: Reader, id_fields: tuple[str, ...], limit: int | None
) -> tuple[Item, ...]:
    """Read records as items, at most `limit`; ids must differ.

    Raises:
        TaskError: no items, a repeated id, or an unusable record.
    """
    seen: dict[str, str] = {}
    items: list[Item] = []
    for index, record in enumerate(islice(records, limit)):
        item = read(record, name, record.identifier(index, name, id_fields))
        if item.id in seen:
            record.fail("id", f"{item.id!r} was already used in {seen[item.id]}", "ids must be unique within a task")
        seen[item.id] = record.where
        items.append(item)
    if not items:
        raise TaskError(f"no items for {name}", "the data file or split is empty")
    return tuple(items)


def build_task(name: str, items: tuple[Item, ...], metric: str, source: dict[str, Any]) -> Task:
    """Wrap items up with their chance level and fingerprint."""
    facts = {**source, "items": len(items), "fingerprint": fingerprint(items)}
    return Task(name=name, items=items, metric=metric, chance=chance_level(items), source=facts)
