"""One run from its spec to its end; the same call again goes on where it stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lowmem_layers.errors import RecordError
from lowmem_layers.findings.run import Run, open_run
from lowmem_layers.findings.statement import check_statement
from lowmem_layers.game.players.design import Design
from lowmem_layers.record.folder import claim, known_run, tidy
from lowmem_layers.record.identity import code_digest, same_run
from lowmem_layers.record.items import ITEMS_FILE, items_table, rows_of
from lowmem_layers.record.lock import locked
from lowmem_layers.record.manifest import Manifest, Status
from lowmem_layers.record.run_json import read_manifest, write_manifest
from lowmem_layers.record.scores import write_table
from lowmem_layers.record.spec import Specification, StudySpec, default_folder
from lowmem_layers.study.contracts import Prepare, Prepared, ReadTasks, TaskLike
from lowmem_layers.study.description import describe_run
from lowmem_layers.study.design import plan_design
from lowmem_layers.study.events import Announce, RunFinished, StageStarted, ignore
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
    """Measure what the spec asks for and record it; finished tiles of an earlier call are kept.

    A run that is complete is given back without loading a model, if the tasks' data are still the same. `prepare` and
    `read` (of tasks) are for tests.

    Raises:
        RecordError: the folder holds another run, is damaged, in use or cannot be written.
        LowmemLayersError: the model, the tasks or the budget are unusable.
        KeyboardInterrupt: interrupted; the record is consistent and the same call resumes.
    """
    resolved = spec.resolved()
    folder = Path(out) if out is not None else default_folder(resolved)
    with contextlib.ExitStack() as stack:
        known = known_run(folder, resolved)
        if known is not None:
            stack.enter_context(locked(folder))
            read = read or (_real_reader() if prepare is None else None)
            if read is not None and _is_complete(folder, known, read(resolved)):
                announce(StageStarted("complete already"))
                return open_run(folder)
            resolved = replace(resolved, threads=resolved.threads or known.machine.threads)
            _note_changed_code(known, announce)
        prepared = (prepare or _real_prepare())(resolved, announce)
        manifest = _settled(resolved, prepared, folder, known, stack, announce)
        with _accounted(folder, manifest, announce, clock) as account:
            tidy(folder)
            write_table(folder / ITEMS_FILE, items_table(rows_of(prepared.encoded)))
            write_manifest(folder, manifest)
            account.stopped = score_tiles(folder, manifest, prepared, announce, clock)
    return open_run(folder)


def _settled(
    resolved: Specification,
    prepared: Prepared,
    folder: Path,
    known: Manifest | None,
    stack: contextlib.ExitStack,
    announce: Announce,
) -> Manifest:
    """Settle what is run: the folder claimed and locked, or an earlier call's plan taken over."""
    announce(StageStarted("testing the model, planning"))
    game = _game_of(resolved, prepared, known, announce)
    manifest = describe_run(resolved, prepared, game)
    if known is None:
        claim(folder)
        stack.enter_context(locked(folder))
        known = known_run(folder, resolved)
    return manifest if known is None else _taken_over(folder, known, manifest)


def _game_of(resolved: Specification, prepared: Prepared, known: Manifest | None, announce: Announce) -> Design:
    """Read the game off the options; how far removal orders are walked is settled once, and kept by the record."""
    game = plan_design(resolved, prepared.players)
    check_statement(resolved.until, len(game.players), max(map(len, game.of_players)))
    if not game.orders:
        return game
    if known is not None and known.design.orders == game.orders:
        return game.cut(known.design.cuts)
    return settle_cuts(prepared, game, resolved.seed, announce)


@dataclass
class _Account:
    """What a run has to say at its end."""

    stopped: str = ""


@contextlib.contextmanager
def _accounted(folder: Path, manifest: Manifest, announce: Announce, clock: Callable[[], float]) -> Iterator[_Account]:
    """Keep the run's status in run.json true, however the body ends."""
    start = clock()
    status: Status = "failed"
    account = _Account()
    try:
        yield account
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        # When the disk is full, the error on its way says more than a second one would.
        with contextlib.suppress(RecordError) if status != "done" else contextlib.nullcontext():
            read_manifest(folder)  # never a run.json where the run had not begun
            ended = manifest.with_status(status, clock() - start)
            write_manifest(folder, replace(ended, stopped=account.stopped))
        announce(RunFinished(str(folder), status, clock() - start))


def _taken_over(folder: Path, known: Manifest, now: Manifest) -> Manifest:
    """Go on with the tile plan and the account of an earlier call of the same run."""
    same_run(folder, known, now)
    return replace(now, created=known.created, elapsed_s=known.elapsed_s, plan=known.plan, status="running")


def _is_complete(folder: Path, known: Manifest, tasks: Sequence[TaskLike]) -> bool:
    """Tell whether nothing is left to do: every tile there (or stopped early), of data that are still the same."""
    same = [(task.name, dict(task.source)) for task in tasks] == [(entry.task, entry.source) for entry in known.data]
    return same and known.status == "done" and not Run(folder, known).is_unfinished


def _note_changed_code(known: Manifest, announce: Announce) -> None:
    """Say so where a run is continued by other code of the same version."""
    if known.versions.get("code") not in (None, code_digest()):
        announce(StageStarted("note: this package's code has changed since the run began"))


def _real_reader() -> ReadTasks:
    from lowmem_layers.study.prepare import read_tasks

    return read_tasks


def _real_prepare() -> Prepare:
    from lowmem_layers.study.prepare import prepare_study

    return prepare_study
