"""Tasks of lm-evaluation-harness: its index of task files, a folder of further ones, and what these may run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError, did_you_mean
from lowmem_layers.tasks.records import reason
from lowmem_layers.tasks.sandbox import Sandbox

HARNESS_PREFIX = "lm_eval:"
KINDS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")


@cache
def _manager(include: Path | None) -> Any:
    """Build the harness' index of its thousands of task files once a process, because this takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def harness_tasks(name: str, include: Path | None = None, *, trust_code: bool = True) -> dict[str, Any]:
    """Load a task of the harness, or all tasks of one of its groups or tags, by their names.

    `include` is a folder with more task files. Unless `trust_code`, those that name Python code are not loaded.

    Raises:
        TaskError: the package or the folder is missing, there is no such task, the task is of another kind or has code
            that is not trusted, or its data cannot be loaded.
    """
    # 1) find the name in the harness' index
    if include is not None and not include.is_dir():
        raise TaskError(f"--include-path {include} is not a folder", "give the folder that holds the YAML task files")
    try:
        manager = _manager(include)
    except ImportError as error:
        raise TaskError(
            f"{HARNESS_PREFIX}{name} needs lm-evaluation-harness", "pip install 'lowmem-layers[lm-eval]'"
        ) from error
    if name not in manager.all_tasks:
        hint = f"{did_you_mean(name, manager.all_tasks, n=3)}all tasks are listed by: lm_eval ls tasks"
        raise TaskError(f"lm-evaluation-harness has no task {name!r}", hint)
    # 2) refuse another kind before its data are fetched; a group and a Python task say their kind only when loaded
    _check_kind(name, (manager.task_index[name].cfg or {}).get("output_type", KINDS[0]))
    if include is not None and not trust_code:
        refuse_code(name, manager.task_index)
    # 3) load the task and its data
    try:
        with templates_in_sandbox(active=include is not None and not trust_code):
            loaded = manager.load(name)["tasks"]
    except Exception as error:  # loading runs a task's own code, and the hub's client
        raise TaskError(
            f"lm-evaluation-harness cannot load the data of {name}: {type(error).__name__}: {reason(error)}",
            "fetch them once where there is a network; afterwards HF_HUB_OFFLINE=1 uses what was fetched",
        ) from error
    for member, task in loaded.items():
        _check_kind(member, getattr(task, "OUTPUT_TYPE", None))
    return loaded


def _check_kind(name: str, kind: Any) -> None:
    if kind not in KINDS:
        raise TaskError(f"{HARNESS_PREFIX}{name} is of kind {kind}", f"tasks of these kinds can be scored: {KINDS}")


def refuse_code(name: str, index: dict[str, Any]) -> None:
    """Refuse a task of the index, or any member of a group or tag, whose files name Python code (`!function`).

    The harness' own files are as trusted as the installed package; all others are looked at, with what they include.

    Raises:
        TaskError: a file names code, or cannot be looked at.
    """
    import lm_eval

    installed = Path(str(lm_eval.__file__)).resolve().parent
    # 1) the task files that loading the name would read: its own, and those of a group's or a tag's members
    waiting, known = [name], set[str]()
    files: list[Path] = []
    while waiting:
        entry = index.get(one := waiting.pop())
        if entry is None or one in known:
            continue
        known.add(one)
        files += [entry.yaml_path] if entry.yaml_path is not None else []
        waiting += [*entry.tags, *_members((entry.cfg or {}).get("task"))]
    # 2) what is written in them, and in the files that they include
    seen: set[Path] = set()
    while files:
        path = files.pop().resolve()
        if path in seen or path.is_relative_to(installed):
            continue
        seen.add(path)
        function, included = _written_in(path)
        if function is not None:
            raise TaskError(
                f"{HARNESS_PREFIX}{name}: {path.name} runs Python code of its own ({function!r:.60}), which is not run "
                "unasked",
                "if you trust its author, add --trust-task-code",
            )
        files += [path.parent / other for other in included]


def _members(task: Any) -> list[str]:
    """List the names in a group's field `task`, at any depth."""
    if isinstance(task, list):
        return [name for one in task for name in _members(one)]
    if isinstance(task, dict):
        return [name for key in ("task", "group") for name in _members(task.get(key))]
    return [task] if isinstance(task, str) else []


def _written_in(path: Path) -> tuple[str | None, list[str]]:
    """Read a YAML file without making anything of it: the first `!function` in it, and the files that it includes.

    Raises:
        TaskError: the file cannot be read.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise TaskError(f"cannot read the task file {path}: {problem:.200}", "correct it, or take it away") from error
    included: list[str] = []
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias names a node again, and may name one that it stands in
            continue
        seen.add(id(node))
        if not node.tag.startswith("tag:yaml.org,2002:"):
            return f"{node.tag} {node.value if isinstance(node.value, str) else ''}".strip(), included
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == "include":
                    several = value.value if isinstance(value, yaml.SequenceNode) else [value]
                    included += [one.value for one in several]
                waiting += [key, value]
    return None, included


class _HarnessSandbox(Sandbox):
    """The sandbox as the harness uses its environment: it compiles a template anew for each text."""

    def from_string(self, *args: Any, **kwargs: Any) -> Any:
        """Compile a template, and count its work from 0."""
        self.reset()
        return super().from_string(*args, **kwargs)


@contextlib.contextmanager
def templates_in_sandbox(*, active: bool) -> Iterator[None]:
    """Let the harness render templates of unknown files in the sandbox: its own environment lets them run any code."""
    if not active:
        yield
        return
    from lm_eval import utils

    usual, utils.env = utils.env, _HarnessSandbox()
    utils.env.filters["regex_replace"] = usual.filters["regex_replace"]
    try:
        yield
    finally:
        utils.env = usual
