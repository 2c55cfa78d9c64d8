"""What is known of a run before its first tile: model, data, engine, versions and the plan of its tiles."""

from __future__ import annotations

import contextlib
import datetime
import platform
from collections.abc import Sequence
from functools import cache
from importlib import metadata

from lowmem_layers._version import __version__
from lowmem_layers.errors import EngineError
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.uncertainty.stopping import item_order
from lowmem_layers.record.identity import code_digest, fingerprint
from lowmem_layers.record.items import no_collections
from lowmem_layers.record.manifest import EngineRecord, MachineRecord, Manifest, ModelRecord, TaskRecord, described
from lowmem_layers.record.spec import Specification
from lowmem_layers.record.tile_plan import TilePlan
from lowmem_layers.study.contracts import Prepared

_LIBRARIES = ("torch", "transformers", "bitsandbytes", "datasets", "numpy", "pyarrow")


@no_collections()
def describe_run(
    specification: Specification,
    prepared: Prepared,
    design: Design,
    tiles: tuple[tuple[int, ...], ...] | None = None,
) -> Manifest:
    """Put everything that is known of a run before its first tile into its manifest.

    `tiles` are those of an earlier call, which are kept; without them they are planned.
    """
    versions = {"lowmem-layers": __version__, "code": code_digest(), "python": platform.python_version()}
    versions |= library_versions()
    if tiles is not None:
        plan = TilePlan(tuple(design.removed), tiles)
    else:
        # A run that may stop early takes its items in an order that has nothing to do with their content.
        clusters = [(item.task, item.cluster) for item in prepared.encoded]
        order = item_order(clusters, specification.seed) if specification.until else None
        plan = make_plan(prepared, design, order)
    return Manifest(
        status="running",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        resolved=specification,
        identity=specification.identity(),
        model=described(prepared.model, ModelRecord, "placement"),
        data=describe_data(prepared),
        machine=MachineRecord(threads=prepared.machine.get("threads")),
        engine=described(prepared.engine.describe(), EngineRecord, "more"),
        versions=versions,
        design=design,
        plan=plan,
        work=prepared.engine.work(prepared.encoded, plan.coalitions),
    )


def make_plan(prepared: Prepared, design: Design, order: Sequence[int] | None = None) -> TilePlan:
    """Plan the design's coalitions over all items, taken in this order (None: the items' own order)."""
    coalitions = tuple(design.removed)
    order = range(len(prepared.encoded)) if order is None else order
    planned = prepared.engine.plan_tiles([prepared.encoded[index] for index in order], coalitions)
    tiles = tuple(tuple(sorted(order[place] for place in tile)) for tile in planned)
    if sorted(index for tile in tiles for index in tile) != list(range(len(prepared.encoded))):
        raise EngineError("the tile plan does not hold every item exactly once")
    return TilePlan(coalitions, tiles)


@cache
def library_versions() -> dict[str, str]:
    """Look up the versions of the libraries that numbers depend on, once a process: it takes 30 ms."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def describe_data(prepared: Prepared) -> tuple[TaskRecord, ...]:
    """Describe the data of each task, with a fingerprint of its tokens and gold choices."""
    found = []
    for task in prepared.tasks:
        encoded = [item for item in prepared.encoded if item.task == task.name]
        found.append(
            TaskRecord(task.name, len(encoded), task.metric, task.chance, fingerprint(encoded), dict(task.source))
        )
    return tuple(found)
