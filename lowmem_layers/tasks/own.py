"""A task of the user's own, described by a TOML (or YAML) file: where the data are, and three templates."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, did_you_mean
from lowmem_layers.tasks.benchmarks import Reader
from lowmem_layers.tasks.items import Item, make_item
from lowmem_layers.tasks.metrics import METRICS, VALUES, Value
from lowmem_layers.tasks.records import Record, is_unicode, open_data, shown
from lowmem_layers.tasks.sources import HubSource
from lowmem_layers.tasks.templates import expression, text_template

OWN_SUFFIXES = (".toml", ".yaml", ".yml")

_TEXT_KEYS = ("name", "data", "hub", "config", "revision", "split", "train", "train_split", "metric")
_TEMPLATE_KEYS = ("context", "contexts", "choices", "continuation", "gold", "id", "cluster")
_KEYS = (*_TEXT_KEYS, "fewshot", *_TEMPLATE_KEYS)


@dataclass(frozen=True)
class OwnTask:
    """A validated task file.

    `data` and `train` (the records of few-shot examples) are a file, a folder or a data set of the hub; `train` is None
    if the task file names no place for examples. `names_items` says that the task file has a template for ids.
    """

    name: str
    data: Path | HubSource
    split: str
    train: Path | HubSource | None
    train_split: str
    metric: Value
    fewshot: int
    names_items: bool
    read: Reader


def read_own_task(path: Path) -> OwnTask:
    """Read and validate a task file.

    Raises:
        TaskError: the file is missing or malformed, or a field is unknown, missing or of the wrong type.
    """
    file = _TaskFile(path, _fields(path))
    for key in file.fields:
        if key not in _KEYS:
            hint = f"{did_you_mean(key, _KEYS, n=2)}fields: {', '.join(_KEYS)}"
            raise file.problem(shown(key)[1:-1], "unknown", hint)
    texts = {key: file.text(key) for key in _TEXT_KEYS}
    # 1) where the records are: paths are relative to the task file
    hub, local = texts["hub"], texts["data"]
    if hub is not None and local is None:
        data = HubSource(hub, texts["config"], texts["revision"])
    elif local is not None and hub is None:
        data = path.parent / local
    else:
        raise file.problem("data", "give either data (a file or folder) or hub (a data set's id)")
    # 2) where the examples are: a data set and a folder have several splits, a file has one
    train = data if isinstance(data, HubSource) or data.is_dir() else None
    if texts["train"] is not None:
        train = path.parent / texts["train"]
    # 3) how the items are judged
    said = texts["metric"] or "acc"
    if said not in METRICS:
        hint = f"{did_you_mean(said, VALUES)}metrics: {', '.join(VALUES)}"
        raise file.problem("metric", f"there is no metric {said!r}", hint)
    fewshot = file.fields.get("fewshot", 0)
    if isinstance(fewshot, bool) or not isinstance(fewshot, int) or fewshot < 0:
        raise file.problem("fewshot", f"expected a whole number of at least 0, got {shown(fewshot)}")
    return OwnTask(
        name=texts["name"] or path.stem,
        data=data,
        split=texts["split"] or "test",
        train=train,
        train_split=texts["train_split"] or "train",
        metric=METRICS[said].name,
        fewshot=fewshot,
        names_items="id" in file.fields,
        read=file.reader(),
    )


def _fields(path: Path) -> dict[str, Any]:
    """Parse a task file.

    Raises:
        TaskError: the file is missing, is malformed, or does not consist of fields; or there is no YAML reader.
    """
    if not path.is_file():
        raise TaskError(f"no task file {path}", "check the path; built-in tasks are listed by: lowmem-layers tasks")
    with open_data(path) as file:
        raw = file.read()
    parse, failures = tomllib.loads, (ValueError, RecursionError)  # TOML's and Unicode's errors are ValueErrors
    if path.suffix != ".toml":
        try:
            import yaml
        except ImportError as error:
            raise TaskError(f"{path.name}: reading YAML needs PyYAML", "pip install pyyaml, or write TOML") from error
        parse, failures = yaml.safe_load, (*failures, yaml.YAMLError)
    try:
        fields = parse(raw.decode("utf-8-sig"))
    except failures as error:
        raise TaskError(f"{path.name}: {' '.join(str(error).split())}", "correct the task file") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{path.name}: expected fields with values", 'the first line may be: data = "FILE"')
    return {str(key): value for key, value in fields.items()}


@dataclass(frozen=True)
class _TaskFile:
    """The fields of a task file, as texts, templates and expressions; every error names the file and the field."""

    path: Path
    fields: Mapping[str, Any]

    def problem(self, field: str, problem: str, hint: str = "correct the task file") -> TaskError:
        """Make the error that names the file and one of its fields."""
        return TaskError(f"{self.path.name}, field {field!r}: {problem}", hint)

    def text(self, key: str) -> str | None:
        """Read a field that is used as it is; None if the task file does not have it."""
        value = self.fields.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip() or not is_unicode(value)):
            raise self.problem(key, f"expected text, got {shown(value)}")
        return value

    def template(self, key: str) -> Callable[[Record], str]:
        """Compile a template that gives text."""
        source = self.text(key)
        if source is None:
            raise self.problem(key, "expected a template, as text")
        return text_template(source, f"{self.path.name}, field {key!r}")

    def name_template(self, key: str) -> Callable[[Record], str] | None:
        """Compile the template of an id or a cluster, if there is one; its text must be printable."""
        if key not in self.fields:
            return None
        render = self.template(key)

        def checked(record: Record) -> str:
            value = render(record)
            if not value.strip() or not value.isprintable():
                raise self.problem(key, f"{record.where} gives {shown(value)}, expected printable text")
            return value

        return checked

    def expression(self, key: str) -> Callable[[Record], Any]:
        """Compile an expression; a plain number stands for itself."""
        value = self.fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return lambda record: value
        source = self.text(key)
        if source is None:
            raise self.problem(key, "expected an expression, as text")
        return expression(source, f"{self.path.name}, field {key!r}")

    def texts(self, key: str) -> Callable[[Record], tuple[str, ...]]:
        """Compile a list of templates, or one expression that gives a list of texts."""
        source = self.fields[key]
        if isinstance(source, list) and source:
            entries = _TaskFile(self.path, {f"{key}[{index}]": entry for index, entry in enumerate(source)})
            parts = [entries.template(entry) for entry in entries.fields]
            return lambda record: self.checked_list(key, record, [part(record) for part in parts])
        compute = self.expression(key)
        return lambda record: self.checked_list(key, record, compute(record))

    def checked_list(self, key: str, record: Record, values: Any) -> tuple[str, ...]:
        """Give back what a record gives for a field, if it is a list of usable texts."""
        if not isinstance(values, list | tuple) or not values:
            raise self.problem(key, f"{record.where} gives {shown(values)}, expected a list of texts")
        return tuple(self.checked(key, record, value) for value in values)

    def checked(self, key: str, record: Record, value: Any, *, blank: bool = False) -> str:
        """Give back what a record gives for a field, if it is usable text."""
        if not isinstance(value, str) or not (blank or value.strip()) or not is_unicode(value):
            raise self.problem(key, f"{record.where} gives {shown(value)}, expected text that is not empty")
        return value

    def reader(self) -> Reader:
        """Build the function that turns a record into an item."""
        # 1) a task file has `context` and `choices`, or `contexts` (one for each choice) and one `continuation`
        by_context = "contexts" in self.fields
        one, many = ("continuation", "contexts") if by_context else ("context", "choices")
        for key in (one, many, "gold"):
            if key not in self.fields:
                hint = "a task file has context, choices and gold (or contexts, continuation and gold)"
                raise self.problem(key, "missing", hint)
        for key in ("context", "choices") if by_context else ("contexts", "continuation"):
            if key in self.fields:
                raise self.problem(key, "use context with choices, or contexts with continuation, not both")
        # 2) compile the templates once
        single_of, several_of, gold_of = self.template(one), self.texts(many), self.expression("gold")
        id_of, cluster_of = self.name_template("id"), self.name_template("cluster")

        # 3) apply them to each record
        def read(record: Record, task: str, item_id: str) -> Item:
            several = several_of(record)
            single = (self.checked(one, record, single_of(record), blank=not by_context),) * len(several)
            contexts, choices = (several, single) if by_context else (single, several)
            gold = gold_of(record)
            if isinstance(gold, str) and several.count(gold) == 1:
                gold = several.index(gold)
            if isinstance(gold, bool) or not isinstance(gold, int):
                hint = "give an index (the first choice is 0) or the text of one choice"
                raise self.problem("gold", f"{record.where} gives {shown(gold)}", hint)
            if not 0 <= gold < len(several):
                raise self.problem("gold", f"{record.where} gives {gold}, outside the {len(several)} choices")
            own_id = id_of(record) if id_of else item_id
            return make_item(task, own_id, contexts, choices, gold, cluster_of(record) if cluster_of else None)

        return read
