"""From the names given to `--tasks` to tasks with their items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, UsageError, did_you_mean
from lowmem_layers.tasks.benchmarks import BENCHMARKS, Benchmark, Reader
from lowmem_layers.tasks.chat import described_template, read_chat_template
from lowmem_layers.tasks.fewshot import first_distinct, with_examples
from lowmem_layers.tasks.harness import HARNESS_PREFIX, harness_tasks, templates_in_sandbox
from lowmem_layers.tasks.harness_items import harness_items
from lowmem_layers.tasks.items import ChatTemplate, Item, Task, chance_level, fingerprint
from lowmem_layers.tasks.metrics import Value
from lowmem_layers.tasks.own import OWN_SUFFIXES, read_own_task
from lowmem_layers.tasks.quick import QUICK_FILE, read_quick
from lowmem_layers.tasks.records import Record, read_jsonl
from lowmem_layers.tasks.sources import HubSource, folder_records, hub_records, local_records, read_file, read_split
from lowmem_layers.tasks.text import TEXT_PREFIX, load_text

TASK_NAMES: tuple[str, ...] = ("quick", *BENCHMARKS)

_ID_FIELDS = ("id", "idx", "qID")  # the data set's own ids: of most, of SuperGLUE, of WinoGrande's authors
_FORMS = f"tasks: {', '.join(TASK_NAMES)}, {TEXT_PREFIX}FILE, FILE.toml, {HARNESS_PREFIX}NAME"


@dataclass(frozen=True)
class _Options:
    """The options that hold for all tasks of a run; `load_tasks` says what they mean."""

    data_dir: Path | None
    limit: int | None
    fewshot: int | None
    fewshot_file: Path | None
    window: int
    stride: int
    chat: ChatTemplate | None
    include: Path | None
    trust_code: bool


@dataclass(frozen=True)
class _DataSet:
    """A task whose items are not yet read: where its records come from, and how a record becomes an item.

    `source` is kept for the run's record. `train` opens the records for few-shot examples; it is called only if the
    task has examples. `shots` is their number if the options give none.
    """

    name: str
    metric: Value
    records: Iterator[Record]
    read: Reader
    source: dict[str, Any]
    train: Callable[[], Iterator[Record]] | None = None
    shots: int = 0
    id_fields: tuple[str, ...] = _ID_FIELDS


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    fewshot_file: Path | None = None,
    window: int = 512,
    stride: int = 256,
    chat_template: str | None = None,
    include_path: Path | None = None,
    trust_task_code: bool = False,
) -> list[Task]:
    """Load tasks by name, in the order given.

    A name is `quick`, one of the six benchmarks, `text:FILE`, a task file (`FILE.toml`, `FILE.yaml`) or `lm_eval:NAME`.
    `data_dir` is a folder with the benchmarks' data (TASK.jsonl, or copies of the hub's data sets), used instead of the
    hub. `limit` keeps the first items of each task. `fewshot` is the number of examples before every item; None means
    the number that a task file or lm-evaluation-harness gives, and 0 for all other tasks. The examples are always the
    same: the first of `fewshot_file` if it is given, otherwise the first of the training data. `chat_template` is a
    file, or `tokenizer`: contexts become the user's turn of a chat when they are encoded. `include_path` is a
    folder with more task files of lm-evaluation-harness; only with `trust_task_code` may they run Python code.

    Units: `window` and `stride`, for plain text, in tokens.

    Raises:
        TaskError: a name is unknown or repeated, or data are unusable.
        UsageError: the limit is below 1, the number of examples is negative, or window and stride do not fit.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no items", "use 1 or more, or leave it out for all items")
    if fewshot is not None and fewshot < 0:
        raise UsageError(f"--fewshot {fewshot} is negative", "use 0 or more")
    if not names:
        raise TaskError("no task is named", _FORMS)
    chat = None if chat_template is None else read_chat_template(chat_template)
    options = _Options(data_dir, limit, fewshot, fewshot_file, window, stride, chat, include_path, trust_task_code)
    tasks: dict[str, Task] = {}
    for task in (task for name in names for task in _load(name, options)):
        if chat is not None:
            task = replace(task, chat=chat, source=task.source | described_template(chat))
        if task.name in tasks:
            raise TaskError(f"task {task.name!r} is named twice", "give each task once, under a name of its own")
        tasks[task.name] = task
    return list(tasks.values())


def _load(name: str, options: _Options) -> list[Task]:
    """Load the task of a name; only a group of lm-evaluation-harness gives more than one.

    Raises:
        TaskError: the name is unknown, or data are unusable.
    """
    if name.startswith(HARNESS_PREFIX):
        return _harness(name.removeprefix(HARNESS_PREFIX), options)
    if name.startswith(TEXT_PREFIX):
        if options.fewshot:
            raise TaskError(f"{name} has no few-shot examples", "leave out --fewshot")
        if options.chat is not None:
            raise TaskError(f"{name} has no questions that could be asked in a chat", "leave out --chat-template")
        path = Path(name.removeprefix(TEXT_PREFIX))
        return [load_text(path, window=options.window, stride=options.stride, limit=options.limit)]
    if name.endswith(OWN_SUFFIXES):
        data = _own(Path(name))
    elif name in BENCHMARKS:
        data = _benchmark(BENCHMARKS[name], options.data_dir)
    elif name == "quick":
        source = {"kind": "built-in", "split": None}
        data = _DataSet(name, "acc", read_jsonl(QUICK_FILE), read_quick, source)
    else:
        raise TaskError(f"there is no task {name!r}", did_you_mean(name, TASK_NAMES, n=2) + _FORMS)
    return [_read(data, options)]


def _harness(name: str, options: _Options) -> list[Task]:
    """Load a task of lm-evaluation-harness, or those of a group.

    Raises:
        TaskError: there is none, it cannot be scored, or it has code that is not trusted.
    """
    tasks = []
    sandboxed = options.include is not None and not options.trust_code
    for member, task in harness_tasks(name, options.include, trust_code=options.trust_code).items():
        with templates_in_sandbox(active=sandboxed):
            found = harness_items(member, task, fewshot=options.fewshot, limit=options.limit)
        full_name = HARNESS_PREFIX + member
        if options.chat is not None and (found.rolls or task.config.gen_prefix):
            begun = f"begins the answers itself ({task.config.gen_prefix!r:.40})"
            raise TaskError(
                f"{full_name} {'has no questions' if found.rolls else begun}: not possible in chats",
                "leave out --chat-template",
            )
        if options.chat is not None and any(len(item.examples.turns) < found.source["fewshot"] for item in found.items):
            raise TaskError(f"{full_name} does not tell its examples apart: no turns of a chat", "use --fewshot 0")
        built = _build(full_name, found.items, found.metric, found.source)
        tasks.append(replace(built, delimiter=found.delimiter, rolls=found.rolls))
    return tasks


def _own(path: Path) -> _DataSet:
    """Open the data that a task file names."""
    own = read_own_task(path)
    source: dict[str, Any] = {"kind": "task file", "file": path.name, "split": own.split}
    if isinstance(own.data, HubSource):
        source |= {"hub": own.data.id, "config": own.data.config, "revision": own.data.revision}
    else:
        source |= {"data": own.data.name}

    def train() -> Iterator[Record]:
        if own.train is None:
            raise TaskError(f"{path.name}, field 'train': missing", "name the file that has the few-shot examples")
        return read_split(own.train, own.train_split)

    # a template for ids takes the place of the data's own ids, which are then not looked at
    id_fields = () if own.names_items else _ID_FIELDS
    records = read_split(own.data, own.split)
    return _DataSet(own.name, own.metric, records, own.read, source, train, own.fewshot, id_fields)


def _benchmark(benchmark: Benchmark, folder: Path | None) -> _DataSet:
    """Open the data of a benchmark, in the data folder if there is one, otherwise on the hub."""
    hub = HubSource(benchmark.hub_id, benchmark.hub_config)
    if folder is None:
        records = hub_records(hub, benchmark.split)
        source = {"kind": "hub", "hub": hub.id, "config": hub.config, "split": benchmark.split}
    else:
        records, found = local_records(folder, benchmark.name, hub, benchmark.split)
        source = {"kind": "file", "file": found, "split": benchmark.split}

    def train() -> Iterator[Record]:
        if folder is None:
            return hub_records(hub, benchmark.train_split)
        # the file `TASK.train.jsonl`, otherwise the training split of a local copy
        path = folder / f"{benchmark.name}.train.jsonl"
        if path.is_file():
            return read_file(path)
        for place in (folder / benchmark.name, folder / hub.repository):
            if place.is_dir():
                return folder_records(place, benchmark.train_split, hub.config)[0]
        raise TaskError(f"no training data for {benchmark.name}: {path} is missing", "give --fewshot-file FILE")

    return _DataSet(benchmark.name, benchmark.metric, records, benchmark.read, source, train)


def _read(data: _DataSet, options: _Options) -> Task:
    """Read the items of a task and put few-shot examples before them.

    Raises:
        TaskError: there are no items or too few examples, an id is repeated, or a record is unusable.
    """
    # 1) the items
    seen: dict[str, str] = {}
    items: list[Item] = []
    for index, record in enumerate(islice(data.records, options.limit)):
        item = data.read(record, data.name, record.identifier(index, data.name, data.id_fields))
        if item.id in seen:
            record.fail("id", f"{item.id!r} was already used in {seen[item.id]}", "ids must be unique within a task")
        seen[item.id] = record.where
        items.append(item)
    if data.source["kind"] == "task file":  # the benchmarks' clusters are part of what records know them by
        items = _repeats_together(items)
    shots = data.shots if options.fewshot is None else options.fewshot
    if shots == 0:
        return _build(data.name, tuple(items), data.metric, data.source)
    # 2) the examples before them
    if options.fewshot_file is not None:
        records = read_file(options.fewshot_file)
    elif data.train is not None:
        records = data.train()
    else:
        raise TaskError(
            f"{data.name} has no training examples", "give --fewshot-file FILE, with records like those of the task"
        )
    examples = (data.read(record, data.name, f"example-{index}") for index, record in enumerate(records))
    prefixed, prefix = with_examples(items, first_distinct(examples, shots), shots)
    task = _build(data.name, prefixed, data.metric, data.source)
    return replace(task, shared_prefix=prefix, source={**task.source, "fewshot": shots})


def _repeats_together(items: Sequence[Item]) -> list[Item]:
    """Put an item that says the same as an earlier one into its cluster: it is no independent observation.

    Items whose cluster is given keep it.
    """
    first: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    clusters = [first.setdefault((item.contexts, item.continuations), item.cluster) for item in items]
    return [
        replace(item, cluster=cluster) if item.cluster == item.id else item
        for item, cluster in zip(items, clusters, strict=True)
    ]


def _build(name: str, items: tuple[Item, ...], metric: Value, source: dict[str, Any]) -> Task:
    """Make a task of its items, with its chance level, and their number and fingerprint for the run's record."""
    if not items:
        raise TaskError(f"no items for {name}", "the data file or split is empty")
    facts = {**source, "items": len(items), "fingerprint": fingerprint(items)}
    return Task(name=name, items=items, metric=metric, chance=chance_level(items), source=facts)
