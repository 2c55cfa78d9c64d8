"""Workers for one run or several: Ray is opened when the first run needs them, and ended behind the last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

from lowmem_layers.errors import UsageError
from lowmem_layers.record.manifest import EngineRecord
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepare, Prepared, ReadTasks
from lowmem_layers.study.events import Announce, StageStarted
from lowmem_layers.workers.crew import Crew
from lowmem_layers.workers.on_ray import RayHands, check_device, check_reachable, library, ray_open, wants_cards


@contextlib.contextmanager
def hired(
    n_workers: int | None,
    address: str | None = None,
    *,
    mixed: bool = False,
    read: ReadTasks | None = None,
    prepare: Prepare | None = None,
) -> Iterator[Prepare]:
    """Give what `run_study` takes as `prepare`: the model is then held by workers, and this process holds none.

    Without an address Ray is started on this machine, else its cluster is used; `n_workers` None takes one for each
    card there, or for each host where there are no cards. Where no number of threads is given, the CPUs are shared.
    Several runs, one after another, are made by the same workers while device and threads stay the same.
    `read` reads the tasks in this process; `prepare` is what each worker does, for tests.

    Raises:
        UsageError: Ray is missing, or no number of workers is given for this machine.
    """
    library()
    if n_workers is None and address is None:
        raise UsageError("how many workers is not said", "add --workers N, or --ray ADDRESS of a cluster")
    check_number(n_workers)
    if address is not None:
        check_reachable(address)
    kept: dict[tuple[str, int], Crew] = {}  # at most one: the workers of the last run, by its device and threads
    with contextlib.ExitStack() as stack:

        def prepare_on_workers(
            specification: Specification, announce: Announce, earlier: EngineRecord | None
        ) -> Prepared:
            check_device(specification)
            threads = specification.threads or usual_threads(n_workers or 1)
            kind = specification.device, threads
            if kind not in kept:
                kept.clear()
                stack.close()
                announce(StageStarted("starting Ray"))
                stack.enter_context(ray_open(address, (n_workers or 1) * threads))
                hands = RayHands(n_workers, wants_cards(specification), threads, prepare)
                stack.callback(hands.dismiss)
                kept[kind] = Crew(hands, read, mixed)
            given = replace(specification, threads=threads, device="cuda" if wants_cards(specification) else "cpu")
            return kept[kind].prepare(given, announce, earlier)

        yield prepare_on_workers


def check_number(n_workers: int | None) -> None:
    """See that a number of workers is one.

    Raises:
        UsageError: it is less than 1.
    """
    if n_workers is not None and n_workers < 1:
        raise UsageError(f"--workers {n_workers} is too small", "--workers takes a number of at least 1")


def usual_threads(n_workers: int) -> int:
    """Share this machine's threads among workers, where no number of threads is given."""
    return max(1, (os.cpu_count() or 1) // n_workers)
