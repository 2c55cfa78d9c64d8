"""Comparing a run in a folder with the run that is asked for now: are they the same, and if not, what differs?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lowmem_layers.errors import RecordError
from lowmem_layers.record.manifest import EngineRecord, Manifest, TaskRecord
from lowmem_layers.tasks.items import EncodedItem


@cache
def code_digest() -> str:
    """Hash this package's own modules: a record names the code that made it more exactly than a version does."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(encoded: Sequence[EncodedItem]) -> str:
    """Hash items as the model sees them: names, tokens, scored lengths, golds, in order."""
    digest = hashlib.sha256()
    for item in encoded:
        tokens = [(choice.n_scored, list(choice.tokens)) for choice in item.choices]
        digest.update(repr((item.task, item.id, item.gold, item.cluster, tokens)).encode())
    return digest.hexdigest()


def same_identity(folder: Path, run: Manifest, identity: Mapping[str, Any]) -> None:
    """Compare the options that decide the numbers, before anything is loaded.

    Raises:
        RecordError: the folder holds a run of other options.
    """
    _refuse(folder, list(_differences(run.identity, identity, "")))


def same_run(folder: Path, run: Manifest, now: Manifest) -> None:
    """Compare model, data and engine with those of the folder.

    Raises:
        RecordError: the folder holds a run of another model, other data or another arithmetic.
    """
    # 1) model and data: where these differ, everything behind them does, too
    found = list(_differences(run.model.numeric(), now.model.numeric(), "model "))
    if [task.task for task in run.data] != [task.task for task in now.data]:
        found.append("tasks")
    for old, new in zip(run.data, now.data, strict=False):
        found += _differences(_content(old), _content(new), f"data of {new.task}: ")
    # 2) who plays, which coalitions, and the order of additions
    if not found:
        found += _differences({"sublayers": run.sublayers}, {"sublayers": now.sublayers}, "")
        found += _differences({"groups": run.design.grouping}, {"groups": now.design.grouping}, "")
        found += _differences({"coalitions": run.plan.coalitions}, {"coalitions": now.plan.coalitions}, "")
        found += _differences({"threads": run.machine.threads}, {"threads": now.machine.threads}, "")
        found += _differences(_arithmetic(run.engine), _arithmetic(now.engine), "engine ")
    _refuse(folder, found)


def _content(task: TaskRecord) -> dict[str, Any]:
    return {"items": task.items, "metric": task.metric, "fingerprint": task.fingerprint}


def _arithmetic(engine: EngineRecord) -> dict[str, Any]:
    """Take what decides the order of additions. Sizes that only decide the tile plan are left out: the plan is kept."""
    sizes = {name: size for name, size in engine.sizes.items() if name not in ("budget_bytes", "tile_work")}
    return {"layout": engine.layout, "head": engine.more.get("head"), **sizes}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if _plain(old.get(name)) != _plain(new.get(name)):
            yield f"{prefix}{name} ({_short(old.get(name))} there, {_short(new.get(name))} now)"


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


def _refuse(folder: Path, found: Sequence[str]) -> None:
    if found:
        raise RecordError(
            f"{folder} holds another run; what differs: {'; '.join(found)}",
            "choose another folder with --out, or leave --out away: each run then gets its own folder",
        )
