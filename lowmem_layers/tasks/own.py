"""A task of the user's own, described by a TOML (or YAML) file: where the data are, and three templates."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.items import Item, make_item
from lowmem_layers.tasks.metrics import VALUES
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

    `data` (a file or folder, relative to the task file) or `hub` says where the records are; `train` or `train_split`
    where few-shot examples come from; `names_items` that it has a template for ids; `read` turns a record into an item.
    """

    name: str
    path: Path
    data: Path | None
    hub: HubSource | None
    split: str
    train: Path | None
    train_split: str | None
    metric: str
    fewshot: int
    names_items: bool
    read: Callable[[Record, str, str], Item]


def read_own_task(path: Path) -> OwnTask:
    """Read and validate a task file.

    Raises:
        TaskError: it is missing, malformed, or a field is unknown, missing or of the wrong type.
    """
    fields = _parsed(path)
    _check_keys(path, fields)
    texts = {key: _text(path, fields, key) for key in _TEXT_KEYS}
    if (texts["data"] is None) == (texts["hub"] is None):
        raise _problem(path, "data", "give either data (a file or folder) or hub (a data set's id)")
    return OwnTask(
        name=texts["name"] or path.stem,
        path=path,
        data=path.parent / texts["data"] if texts["data"] else None,
        hub=HubSource(texts["hub"], texts["config"], texts["revision"]) if texts["hub"] else None,
        split=texts["split"] or "test",
        train=path.parent / texts["train"] if texts["train"] else None,
        train_split=texts["train_split"],
        metric=_metric(path, texts["metric"] or "acc"),
        fewshot=_count(path, fields.get("fewshot", 0)),
        names_items="id" in fields,
        read=_reader(path, fields),
    )


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TaskError(f"no task file {path}", "check the path; built-in tasks are listed by: lowmem-layers tasks")
    with open_data(path) as file:
        raw: bytes = file.read()
    try:
        text = raw.decode("utf-8-sig")
        fields = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text, path)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise TaskError(f"{path.name}: {' '.join(str(error).split())}", "correct the task file") from error
    if not isinstance(fields, dict):
        raise TaskError(f"{path.name}: expected fields and their values", "begin with: context = ...")
    return {str(key): value for key, value in fields.items()}


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise TaskError(f"{path.name}: reading YAML needs PyYAML", "pip install pyyaml, or write TOML") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _problem(path: Path, field: str, problem: str, hint: str = "correct the task file") -> TaskError:
    return TaskError(f"{path.name}, field {field!r}: {problem}", hint)


def _check_keys(path: Path, fields: Mapping[str, Any]) -> None:
    for key in fields:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=2)
            guess = f"did you mean {' or '.join(near)}? " if near else ""
            raise _problem(path, shown(key)[1:-1], "unknown", f"{guess}fields: {', '.join(_KEYS)}")


def _text(path: Path, fields: Mapping[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip() or not is_unicode(value)):
        raise _problem(path, key, f"expected text, got {shown(value)}")
    return value


def _metric(path: Path, metric: str) -> str:
    if metric not in VALUES:
        raise _problem(path, "metric", f"there is no metric {metric!r}", f"metrics: {', '.join(VALUES)}")
    return metric


def _count(path: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _problem(path, "fewshot", f"expected a whole number from 0, got {shown(value)}")
    return value


def _reader(path: Path, fields: Mapping[str, Any]) -> Callable[[Record, str, str], Item]:
    """Build the function that turns a record into an item.

    Two forms: `context` with `choices`, or `contexts` (one a choice) with one `continuation`.
    """
    by_context = "contexts" in fields
    needed, barred = (("contexts", "continuation"), ("context", "choices"))[:: 1 if by_context else -1]
    for key in (*needed, "gold"):
        if key not in fields:
            raise _problem(
                path, key, "missing", "a task file has context, choices and gold (or contexts, continuation)"
            )
    for key in barred:
        if key in fields:
            raise _problem(path, key, "use context with choices, or contexts with continuation, not both")
    many = _list_of(path, fields, "contexts" if by_context else "choices")
    one = _template(path, fields, "continuation" if by_context else "context")
    answer = _expression(path, fields, "gold")
    name, cluster = (_optional(path, fields, key) for key in ("id", "cluster"))

    def read(record: Record, task: str, item_id: str) -> Item:
        several, single = many(record), _checked(path, record, one(record), blank=not by_context)
        gold = _gold_index(path, record, answer(record), several)
        own_id = name(record) if name else item_id
        contexts, choices = (several, (single,)) if by_context else ((single,), several)
        size = len(several)
        return make_item(
            task,
            own_id,
            contexts * (size // len(contexts)),
            choices * (size // len(choices)),
            gold,
            cluster(record) if cluster else None,
        )

    return read


def _template(path: Path, fields: Mapping[str, Any], key: str) -> Callable[[Record], str]:
    source = _text(path, fields, key)
    if source is None:
        raise _problem(path, key, "expected a template")
    return text_template(source, f"{path.name}, field {key!r}")


def _optional(path: Path, fields: Mapping[str, Any], key: str) -> Callable[[Record], str] | None:
    """Compile the template of an id or cluster; its text must be printable."""
    if key not in fields:
        return None
    render = _template(path, fields, key)

    def checked(record: Record) -> str:
        value = render(record)
        if not value.strip() or not value.isprintable():
            raise _problem(path, key, f"{record.where} gives {shown(value)}, which names nothing")
        return value

    return checked


def _expression(path: Path, fields: Mapping[str, Any], key: str) -> Callable[[Record], Any]:
    value = fields.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return lambda record: value
    source = _text(path, fields, key)
    if source is None:
        raise _problem(path, key, "expected an expression")
    return expression(source, f"{path.name}, field {key!r}")


def _list_of(path: Path, fields: Mapping[str, Any], key: str) -> Callable[[Record], tuple[str, ...]]:
    """Read choices: a list of templates, or one expression that gives a list."""
    source = fields[key]
    if isinstance(source, list) and source:
        parts = [_template(path, {f"{key}[{n}]": part}, f"{key}[{n}]") for n, part in enumerate(source)]
        return lambda record: _checked_list(path, record, key, [part(record) for part in parts])
    compute = _expression(path, fields, key)
    return lambda record: _checked_list(path, record, key, compute(record))


def _checked_list(path: Path, record: Record, key: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or len(values) < 1:
        raise _problem(path, key, f"{record.where} gives {shown(values)}, expected a list of texts")
    return tuple(_checked(path, record, value, key=key) for value in values)


def _checked(path: Path, record: Record, value: Any, *, key: str = "context", blank: bool = False) -> str:
    if not isinstance(value, str) or not (blank or value.strip()) or not is_unicode(value):
        raise _problem(path, key, f"{record.where} gives {shown(value)}, expected text that is not empty")
    return value


def _gold_index(path: Path, record: Record, value: Any, choices: tuple[str, ...]) -> int:
    """Take a whole number as an index, and text as one of the choices."""
    if isinstance(value, str) and choices.count(value) == 1:
        return choices.index(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _problem(
            path, "gold", f"{record.where} gives {shown(value)}", "give an index (0-based) or the text of one choice"
        )
    if not 0 <= value < len(choices):
        raise _problem(path, "gold", f"{record.where} gives {value}, outside the {len(choices)} choices")
    return value
