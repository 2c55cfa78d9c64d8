"""What run.json says of a run before its first tile: model, data, engine, versions, the tile plan."""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lowmem_layers._version import __version__
from lowmem_layers.errors import EngineError
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.uncertainty.stopping import item_order
from lowmem_layers.record.identity import code_digest, fingerprint
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.spec import Specification
from lowmem_layers.record.tile_plan import TilePlan
from lowmem_layers.study.contracts import Prepared, TaskLike
from lowmem_layers.tasks.items import EncodedItem

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "datasets", "numpy", "pyarrow")


def describe_run(specification: Specification, prepared: Prepared, game: Design) -> Manifest:
    """Say all there is to say about a run before its first tile."""
    seed, n_items = specification.seed, len(prepared.encoded)
    plan = make_plan(prepared, game, item_order(n_items, seed) if specification.until else None)
    return Manifest(
        status="running",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        passed=specification.passed.to_json(),
        resolved=specification.to_json(),
        identity=specification.identity(),
        model=dict(prepared.model),
        data=describe_data(prepared),
        machine=dict(prepared.machine),
        engine=prepared.engine.describe(),
        versions=_versions(),
        players=tuple(player.name for player in prepared.players),
        plan=plan,
        game=game,
        work=prepared.engine.work(prepared.encoded, plan.coalitions),
        seed=seed,
    )


def make_plan(prepared: Prepared, game: Design, order: Sequence[int] | None = None) -> TilePlan:
    """Plan the game's coalitions over all items, taken in this order (None: their own)."""
    coalitions = tuple(game.removed)
    order = range(len(prepared.encoded)) if order is None else order
    planned = prepared.engine.plan_tiles([prepared.encoded[index] for index in order], coalitions)
    tiles = tuple(tuple(sorted(order[place] for place in tile)) for tile in planned)
    if sorted(index for tile in tiles for index in tile) != list(range(len(prepared.encoded))):
        raise EngineError("the tile plan does not hold every item exactly once")
    return TilePlan(coalitions, tiles)


def describe_data(prepared: Prepared) -> tuple[dict[str, Any], ...]:
    """Describe the data of a run, one entry a task, with a fingerprint of its tokens and golds."""
    return tuple(
        _describe_task(task, [item for item in prepared.encoded if item.task == task.name]) for task in prepared.tasks
    )


def _describe_task(task: TaskLike, encoded: Sequence[EncodedItem]) -> dict[str, Any]:
    return {
        "task": task.name,
        "items": len(encoded),
        "metric": task.metric,
        "chance": task.chance,
        "fingerprint": fingerprint(encoded),
        "source": dict(task.source),
    }


def _versions() -> dict[str, str]:
    found = {"lowmem-layers": __version__, "code": code_digest(), "python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
