"""From the names given to `--tasks` to tasks with their items."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, UsageError
from lowmem_layers.tasks.benchmarks import BENCHMARKS, Benchmark, Reader
from lowmem_layers.tasks.fewshot import first_distinct, with_examples
from lowmem_layers.tasks.harness import HARNESS_PREFIX, harness_items, harness_tasks
from lowmem_layers.tasks.items import Item, Task, chance_level, fingerprint
from lowmem_layers.tasks.own import OWN_SUFFIXES, OwnTask, read_own_task
from lowmem_layers.tasks.quick import QUICK_FILE, read_quick
from lowmem_layers.tasks.records import Record, read_jsonl
from lowmem_layers.tasks.sources import HubSource, folder_records, hub_records, local_records, read_file
from lowmem_layers.tasks.text import TEXT_PREFIX, load_text

TASK_NAMES: tuple[str, ...] = ("quick", *BENCHMARKS)

_ID_FIELDS = ("id", "idx", "qID")
_FORMS = f"tasks: {', '.join(TASK_NAMES)}, {TEXT_PREFIX}FILE, FILE.toml, {HARNESS_PREFIX}NAME"


@dataclass(frozen=True)
class LoadOptions:
    """What goes for all tasks of a run; see `load_tasks`."""

    data_dir: Path | None = None
    limit: int | None = None
    fewshot: int | None = None
    fewshot_file: Path | None = None
    window: int = 512
    stride: int = 256


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    fewshot_file: Path | None = None,
    window: int = 512,
    stride: int = 256,
) -> list[Task]:
    """Load tasks by name, in the order given.

    Names: `quick`; the six benchmarks; `text:FILE`; a task file (`FILE.toml`, `FILE.yaml`); `lm_eval:NAME`.
    `data_dir` holds the benchmarks' data (TASK.jsonl, or copies of the hub's data sets), used instead of the hub.
    `limit` keeps the first items of each task. `fewshot` puts that many fixed examples before every item: the first
    ones of `fewshot_file`, else of the training data; None leaves it to the task (a task file, the harness), or 0.

    Units: `window` and `stride`, for plain text, in tokens.

    Raises:
        TaskError: an unknown or repeated name, or unusable data.
        UsageError: a limit below 1, a negative number of examples, or a window and stride that do not fit.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no items", "use 1 or more, or leave it out for all")
    if fewshot is not None and fewshot < 0:
        raise UsageError(f"--fewshot {fewshot} is negative", "use 0 or more")
    if not names:
        raise TaskError("no task is named", _FORMS)
    options = LoadOptions(data_dir, limit, fewshot, fewshot_file, window, stride)
    tasks: list[Task] = []
    for task in (task for name in names for task in load_named(name, options)):
        if task.name in [other.name for other in tasks]:
            raise TaskError(f"task {task.name!r} is named twice", "give each task once, under a name of its own")
        tasks.append(task)
    return tasks


def load_named(name: str, options: LoadOptions) -> list[Task]:
    """Load the task of a name, or the tasks of a group of the harness.

    Raises:
        TaskError: an unknown name, or unusable data.
    """
    if name.startswith(HARNESS_PREFIX):
        loaded = harness_tasks(name.removeprefix(HARNESS_PREFIX))
        return [_load_harness(member, task, options) for member, task in loaded.items()]
    return [_load_one(name, options)]


def _load_one(name: str, options: LoadOptions) -> Task:
    if name.startswith(TEXT_PREFIX):
        return _load_text(name, options)
    if name.endswith(OWN_SUFFIXES):
        return _load_own(read_own_task(Path(name)), options)
    if name == "quick":
        return _load_quick(options)
    if name in BENCHMARKS:
        return _load_benchmark(BENCHMARKS[name], options)
    raise unknown_task(name)


def unknown_task(name: str) -> TaskError:
    """Say that there is no such task, and which ones are near."""
    near = difflib.get_close_matches(name, TASK_NAMES, n=2, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return TaskError(f"there is no task {name!r}", guess + _FORMS)


def _load_text(name: str, options: LoadOptions) -> Task:
    _no_examples(name, options)
    path = Path(name.removeprefix(TEXT_PREFIX))
    return load_text(path, window=options.window, stride=options.stride, limit=options.limit)


def _no_examples(name: str, options: LoadOptions) -> None:
    if options.fewshot:
        raise TaskError(f"{name} has no few-shot examples", "leave out --fewshot")


def _load_harness(name: str, task: Any, options: LoadOptions) -> Task:
    items, metric, source = harness_items(name, task, fewshot=options.fewshot, limit=options.limit)
    return build_task(HARNESS_PREFIX + name, _nonempty(items, name), metric, source)


def _load_quick(options: LoadOptions) -> Task:
    items = collect_items("quick", read_jsonl(QUICK_FILE), read_quick, options.limit)
    task = build_task("quick", items, "acc", {"kind": "built-in", "split": None})
    return _with_examples(task, read_quick, options, None, options.fewshot or 0)


def _load_benchmark(benchmark: Benchmark, options: LoadOptions) -> Task:
    hub = HubSource(benchmark.hub_id, benchmark.hub_config)
    if options.data_dir is None:
        records = hub_records(hub, benchmark.split)
        source = {"kind": "hub", "hub": hub.id, "config": hub.config, "split": benchmark.split}
    else:
        records, found = local_records(options.data_dir, benchmark.name, hub, benchmark.split)
        source = {"kind": "file", "file": found, "split": benchmark.split}
    items = collect_items(benchmark.name, records, benchmark.read, options.limit)
    task = build_task(benchmark.name, items, benchmark.metric, source)

    def train() -> Iterator[Record]:
        if options.data_dir is None:
            return hub_records(hub, benchmark.train_split)
        return _local_train(options.data_dir, benchmark, hub)

    return _with_examples(task, benchmark.read, options, train, options.fewshot or 0)


def _local_train(folder: Path, benchmark: Benchmark, hub: HubSource) -> Iterator[Record]:
    """Find training examples: `TASK.train.jsonl`, else the training split of a local copy."""
    path = folder / f"{benchmark.name}.train.jsonl"
    if path.is_file():
        return read_file(path)
    for place in (folder / benchmark.name, folder / hub.id.rpartition("/")[2]):
        if place.is_dir():
            return folder_records(place, benchmark.train_split, hub.config)[0]
    raise TaskError(f"no training data for {benchmark.name}: {path} is missing", "give --fewshot-file FILE")


def _load_own(own: OwnTask, options: LoadOptions) -> Task:
    source: dict[str, Any] = {"kind": "task file", "file": own.path.name, "split": own.split}
    if own.hub is not None:
        records = hub_records(own.hub, own.split)
        source |= {"hub": own.hub.id, "config": own.hub.config, "revision": own.hub.revision}
    else:
        records = _own_records(own.data, own.split)
        source |= {"data": own.data.name if own.data else None}
    items = collect_items(own.name, records, own.read, options.limit, () if own.names_items else _ID_FIELDS)
    task = build_task(own.name, items, own.metric, source)

    def train() -> Iterator[Record]:
        if own.hub is not None and own.train is None:
            return hub_records(own.hub, own.train_split or "train")
        if own.train is None and own.data is not None and own.data.is_dir():
            return _own_records(own.data, own.train_split or "train")
        if own.train is None:
            raise TaskError(f"{own.path.name}, field 'train': missing", "name the file of few-shot examples")
        return _own_records(own.train, own.train_split or "train")

    count = own.fewshot if options.fewshot is None else options.fewshot
    return _with_examples(task, own.read, options, train, count)


def _own_records(place: Path | None, split: str) -> Iterator[Record]:
    assert place is not None
    return folder_records(place, split)[0] if place.is_dir() else read_file(place)


def _with_examples(
    task: Task, read: Reader, options: LoadOptions, train: Callable[[], Iterator[Record]] | None, count: int
) -> Task:
    if count == 0:
        return task
    if options.fewshot_file is not None:
        records = read_file(options.fewshot_file)
    elif train is not None:
        records = train()
    else:
        raise TaskError(f"{task.name} has no training examples", "give --fewshot-file FILE with records of its kind")
    examples = (read(record, task.name, f"example-{index}") for index, record in enumerate(records))
    items, prefix = with_examples(task.items, first_distinct(examples, count), count)
    facts = {**task.source, "fewshot": count, "fingerprint": fingerprint(items)}
    return replace(task, items=items, shared_prefix=prefix, source=facts)


def collect_items(
    name: str, records: Iterable[Record], read: Reader, limit: int | None, id_fields: tuple[str, ...] = _ID_FIELDS
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
    return _nonempty(tuple(items), name)


def _nonempty(items: tuple[Item, ...], name: str) -> tuple[Item, ...]:
    if not items:
        raise TaskError(f"no items for {name}", "the data file or split is empty")
    return items


def build_task(name: str, items: tuple[Item, ...], metric: str, source: dict[str, Any]) -> Task:
    """Wrap items up with their chance level and fingerprint."""
    facts = {**source, "items": len(items), "fingerprint": fingerprint(items)}
    return Task(name=name, items=items, metric=metric, chance=chance_level(items), source=facts)
