"""One run from its options to its end; the same call again goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from lowmem_layers.errors import DamagedError, RecordError
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.statement import check_statement
from lowmem_layers.record.files import make_folder
from lowmem_layers.record.folder import finished_tiles, known_run, tidy
from lowmem_layers.record.identity import code_digest, same_run
from lowmem_layers.record.items import ITEMS_FILE, ItemRow, items_table, no_collections, rows_of
from lowmem_layers.record.lock import locked
from lowmem_layers.record.manifest import Manifest, Status
from lowmem_layers.record.run_json import RUN_FILE, write_manifest
from lowmem_layers.record.scores import SCORES_FOLDER, read_table, write_table
from lowmem_layers.record.spec import Specification, StudySpec, default_folder
from lowmem_layers.record.unused import check_used
from lowmem_layers.record.values import CollectedValues
from lowmem_layers.study.contracts import Engine, Prepare, Prepared, ReadTasks
from lowmem_layers.study.description import describe_run
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.earlier import EarlierTiles
from lowmem_layers.study.events import Announce, Noted, RunFinished, StageStarted, ignore, undisturbed
from lowmem_layers.study.pilot import settle_cuts
from lowmem_layers.study.tiles import score_tiles


def run_study(
    spec: StudySpec | Specification,
    out: str | Path | None = None,
    *,
    announce: Announce = ignore,
    prepare: Prepare | None = None,
    read: ReadTasks | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Run:
    """Measure what the options ask for and record it; finished tiles of an earlier call are kept.

    A run that is complete is given back without loading a model, if the tasks' data are still the same. `prepare` and
    `read` (of tasks) say where the work is done; left out, it is done here.

    Raises:
        LowmemLayersError: options, model or tasks are unusable; the folder holds another run, or is in use.
        KeyboardInterrupt: interrupted; the record is consistent and the same call resumes.
    """
    specification, announce = spec.resolved(), undisturbed(announce)
    check_used(specification.passed)
    folder = Path(out) if out is not None else default_folder(specification)
    if prepare is None:
        from lowmem_layers.study.prepare import prepare_study, read_tasks

        prepare, read = prepare_study, read or read_tasks
    with contextlib.ExitStack() as stack:
        # 1) what the folder holds: another run is refused, a complete one given back
        known = known_run(folder, specification)
        if known is not None:
            stack.enter_context(locked(folder))
            if read is not None and (complete := _complete(folder, known, specification, read)) is not None:
                announce(StageStarted("complete already"))
                return complete
            specification = replace(specification, threads=specification.threads or known.machine.threads)
            if known.versions.get("code") not in (None, code_digest()):
                announce(Noted("this package's code has changed since the run began"))
        # 2) the model, the items and the engine; bad input is refused here, before anything is written
        prepared = prepare(specification, announce, known.engine if known is not None else None)
        # 3) what is measured, and in which folder; then tile by tile
        manifest = _settled(specification, prepared, folder, known, stack, announce)
        with _Ending(folder, manifest, prepared.engine, announce, clock) as ending:
            tidy(folder)
            with no_collections():
                rows = _kept_items(folder, prepared, announce)
                write_manifest(folder, manifest)
                values = CollectedValues(folder, manifest, rows, finished_tiles(folder, len(manifest.plan.tiles)))
                earlier = EarlierTiles(values, announce, clock)
                earlier.read()
            ending.stopped = score_tiles(earlier, prepared, announce, clock)
    return Run(folder, ending.manifest, values)


def _complete(folder: Path, known: Manifest, specification: Specification, read: ReadTasks) -> Run | None:
    """Open a run to which nothing is left to do: every tile there and sound, or stopped early, of the same data."""
    data = [(task.name, dict(task.source)) for task in read(specification)]
    run = Run(folder, known)
    if known.status != "done" or data != [(entry.task, entry.source) for entry in known.data] or run.is_unfinished:
        return None
    try:
        earlier = EarlierTiles(run.values, ignore)
    except DamagedError:
        return None  # the items: they are written anew
    earlier.read_all()
    if earlier.damaged:
        return None
    if known.resolved.value != specification.value:  # no number of the record: how it is looked at, from now on
        passed = replace(known.passed, value=specification.passed.value)
        known = replace(known, resolved=replace(known.resolved, passed=passed, value=specification.value))
        write_manifest(folder, known)
    return Run(folder, known, run.values)


def _settled(
    specification: Specification,
    prepared: Prepared,
    folder: Path,
    known: Manifest | None,
    stack: contextlib.ExitStack,
    announce: Announce,
) -> Manifest:
    """Settle what is run, and hold the folder's lock for it; an earlier call's plan is taken over."""
    # 1) who plays and what is removed; how far removal orders are walked is settled once, and kept by the record
    announce(StageStarted("planning", "plan"))
    design = plan_design(specification, prepared.players)
    check_statement(specification.until, len(design.players), max(map(len, design.of_players)))
    if design.orders and known is not None and known.design.orders == design.orders:
        design = design.cut(known.design.cuts)
    elif design.orders:
        design = settle_cuts(prepared, design, specification.seed, announce)
    manifest = describe_run(specification, prepared, design, known.plan.tiles if known is not None else None)
    # 2) the folder is made, where nothing was known of it; meanwhile another process may have begun this run
    if known is None:
        make_folder(folder / SCORES_FOLDER)
        stack.enter_context(locked(folder))
        known = known_run(folder, specification)
    if known is None:
        return manifest
    # 3) the same model, data and arithmetic go on with the first call's tiles and account
    same_run(folder, known, manifest)
    with no_collections():
        tiles = [[prepared.encoded[index] for index in tile] for tile in known.plan.tiles]
    prepared.engine.check_tiles(tiles, known.plan.coalitions)
    manifest = replace(
        manifest, created=known.created, elapsed_s=known.elapsed_s, plan=known.plan, stopped=known.stopped
    )
    return manifest.with_memory(known.engine.narrowed, known.engine.memory)


@dataclass
class _Ending:
    """Keeps the status in run.json true, however the measuring inside a `with` block ends.

    `stopped` is the statement that ended it, if one did. `manifest` is, behind the block, what run.json says.
    """

    folder: Path
    manifest: Manifest
    engine: Engine
    announce: Announce
    clock: Callable[[], float]
    stopped: str = ""

    def __enter__(self) -> Self:
        # OpenBLAS takes its workspace at the first product that is not tiny, and ends the process if it gets none.
        _ = np.ones((128, 128)) @ np.ones((128, 128))
        self._start = self.clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _traceback: object) -> None:
        usual: Status = "done" if kind is None else "failed"
        status = "interrupted" if kind is not None and issubclass(kind, KeyboardInterrupt) else usual
        elapsed_s = self.clock() - self._start
        ended = self.manifest.with_status(status, max(0.0, elapsed_s), self.stopped)
        about = self.engine.describe()
        self.manifest = ended.with_memory(about.get("narrowed", ()), about.get("memory", {}))
        # When the disk is full, the error on its way says more than a second one would.
        with contextlib.suppress(RecordError) if kind is not None else contextlib.nullcontext():
            if (self.folder / RUN_FILE).exists():  # a run that could not begin leaves no run.json
                write_manifest(self.folder, self.manifest)
        self.announce(RunFinished(str(self.folder), status, elapsed_s))


def _kept_items(folder: Path, prepared: Prepared, announce: Announce) -> list[ItemRow]:
    """See that the folder holds the list of items, and give it; a damaged one is said so and written anew."""
    rows = rows_of(prepared.encoded)
    path, table = folder / ITEMS_FILE, items_table(rows)
    if path.exists():
        try:
            if read_table(path).equals(table):
                return rows
            announce(Noted(f"{path} did not hold this run's items; it is written anew"))
        except DamagedError as error:
            announce(Noted(f"{error.message}; it is written anew"))
    write_table(path, table)
    return rows
