"""What a choice really cost: measured on the held-out items, beside the full model and other choices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lowmem_layers.acting.choosing import Choice, expected_loss, is_held_out
from lowmem_layers.acting.proxies import block_influence_version
from lowmem_layers.acting.speed import tokens_a_second
from lowmem_layers.acting.versions import (
    Version,
    checked_items,
    held_out_items,
    measure_versions,
    prepare_again,
    random_version,
    version_table,
)
from lowmem_layers.errors import RemovalError
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import counted
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.study.contracts import Prepare, Prepared
from lowmem_layers.study.prepare import model_spec

Say = Callable[[str], None]


def measure_choice(
    run: Run,
    choice: Choice,
    value: str | None,
    seed: int,
    say: Say,
    folder: Path | None = None,
    prepare: Prepare | None = None,
) -> pa.Table:
    """Measure the full model, the chosen one and random ones of as many units; one row for each task and version.

    Raises:
        RecordError: the run's items are no longer what the tasks' data give.
    """
    prepared = prepare_again(run, say, prepare)
    versions = [Version("full", ((),)), Version("chosen", (choice.removed,))]
    gone = set(choice.removed)
    n_units = sum(set(unit) <= gone for unit in choice.units)
    if 0 < n_units < len(choice.units):
        versions.append(random_version(choice.units, n_units, seed))
        if hasattr(prepared.engine, "model"):  # not with a dictionary in the engine's place
            seen = [item for item in checked_items(run, prepared) if not is_held_out(item.task, item.cluster)]
            try:
                versions.append(block_influence_version(prepared, seen, choice.units, n_units))
            except RemovalError as error:
                say(f"note: no choice by block influence: {error.message}")
    n_items = len(held_out_items(run, prepared))
    say(f"measuring {counted(len(versions), 'version')} on {counted(n_items, 'held-out item')}")
    tables = measure_versions(run, prepared, versions, value, lambda done, n: say(f"tile {done} of {n}"))
    foreseen = [expected_loss(run, version.removals, value) for version in versions]
    table = version_table(tables, versions, foreseen)
    return _with_speed_and_size(table, run, prepared, choice, folder)


def _with_speed_and_size(
    table: pa.Table, run: Run, prepared: Prepared, choice: Choice, folder: Path | None
) -> pa.Table:
    """Add how fast the model is without what goes, and how many bytes its weight files have; unknown ones are null."""
    speeds: dict[str, float] = {}
    model: Any = getattr(prepared.engine, "model", None)
    if model is not None:
        rates = tokens_a_second(model, held_out_items(run, prepared), [(), choice.removed])
        speeds = dict(zip(("full", "chosen"), rates, strict=True))
    sizes: dict[str, int] = {}
    if folder is not None and (files := list(folder.glob("*.safetensors"))):
        before = find_source(model_spec(run.manifest.resolved)).weight_files
        sizes = {
            name: sum(path.stat().st_size for path in paths) for name, paths in (("full", before), ("chosen", files))
        }
    names = table.column("version").to_pylist()
    table = table.append_column("tokens_per_s", pa.array([speeds.get(name) for name in names], pa.float64()))
    return table.append_column("weight_bytes", pa.array([sizes.get(name) for name in names], pa.int64()))
