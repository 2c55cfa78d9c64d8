"""`run`: measure, record, show, and say at the end what was found and where it is."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from lowmem_layers.cli.config import config_option
from lowmem_layers.cli.display.choose import DISPLAYS, choose_display
from lowmem_layers.cli.entry import Interrupted, complain
from lowmem_layers.cli.grid import Wanted, wanted_runs
from lowmem_layers.cli.options import OUTPUT, GroupedCommand, GroupedOption, study_options, worker_options
from lowmem_layers.cli.output import SUMMARY_ROWS
from lowmem_layers.errors import LowmemLayersError
from lowmem_layers.record.spec import one_of
from lowmem_layers.study.events import StageStarted, undisturbed

if TYPE_CHECKING:
    import torch

    from lowmem_layers.findings.run import Run


@click.command(cls=GroupedCommand)
@study_options
@worker_options
@config_option
@click.option(
    "--out",
    cls=GroupedOption,
    heading=OUTPUT,
    metavar="RUN",
    help="Run folder, or the folder of several runs' folders. The same command again continues what is in it. "
    "[default: runs/…, named after the options]",
)
@click.option(
    "--display",
    cls=GroupedOption,
    heading=OUTPUT,
    metavar="|".join(DISPLAYS),
    default="auto",
    help="How progress is shown, on stderr. With json and none, stdout gets the run folder only. [default: auto]",
)
@click.option(
    "--all-rows",
    cls=GroupedOption,
    heading=OUTPUT,
    is_flag=True,
    help=f"At the end, list all sublayers, not only the {SUMMARY_ROWS} most important.",
)
def run(
    out: str | None,
    display: str,
    all_rows: bool,
    workers: int | None,
    ray: str | None,
    mix_devices: bool,
    **options: Any,
) -> None:
    """Measure which sublayers of a language model matter.

    The same command again continues an interrupted run. With --config, a file may list several runs.
    """
    # 1) the options of every run are checked before anything heavy is imported
    wanted = wanted_runs(click.get_current_context(), options, out)
    one_of("--display", display, DISPLAYS)
    rows = None if all_rows else SUMMARY_ROWS

    # 2) one run after another, on the same workers
    failed: list[str] = []
    with _preparing(workers, ray, mix_devices) as by_workers:
        for each in wanted:
            with _others_go_on(each, failed), _saying_how_to_go_on(each):
                with choose_display(display, each.title) as announce:
                    if each.place is not None:
                        undisturbed(announce)(StageStarted(each.title))
                    from lowmem_layers import run_study

                    preparing = by_workers or _preparing_here(is_shown=display != "none")
                    finished = run_study(each.spec, each.folder, announce=announce, **preparing)
                _say(finished, display, rows)
            if each is not wanted[-1]:
                _free_the_model()
    if failed:
        raise LowmemLayersError(
            f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}",
            "the others are complete; the same command tries these again and goes on where they stopped",
        )


def _say(finished: Run, display: str, n_rows: int | None) -> None:
    """Write the result page and say what was found: computed once, for the page and for the terminal."""
    from lowmem_layers.report import write_report

    findings = finished.findings
    page = write_report(finished, formats=("svg",))
    if display in ("json", "none"):
        click.echo(str(finished.folder))
        return
    from lowmem_layers.cli.summary import summarise

    summarise(finished, findings, page, n_rows=n_rows)


@contextlib.contextmanager
def _others_go_on(wanted: Wanted, failed: list[str]) -> Iterator[None]:
    """Where several runs are made, say why one failed and note its folder: the others are made all the same."""
    try:
        yield
    except Exception as error:
        if wanted.place is None or isinstance(error, Interrupted | BrokenPipeError):
            raise
        failed.append(str(wanted.folder))  # not the error, which holds on to the run's model
        said, hint = f"{type(error).__name__}: {error}", "this run alone with --debug shows where from"
        if isinstance(error, LowmemLayersError):
            said, hint = error.message, error.hint
        complain(f"{wanted.place}, {wanted.folder}: {said}", hint, 1)


@contextlib.contextmanager
def _saying_how_to_go_on(wanted: Wanted) -> Iterator[None]:
    """Where a run is interrupted, say what is kept of it, and by which command it goes on.

    Raises:
        Interrupted: by Ctrl-C or a signal; finished tiles are kept.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        command = shlex.join(["lowmem-layers", *sys.argv[1:]])
        kept = f"finished tiles are kept in {wanted.folder}; to go on: {command}"
        if wanted.place is not None:
            kept = f"in {wanted.place}; complete runs and finished tiles are kept; to go on: {command}"
        elif not (wanted.folder / "run.json").exists():
            kept = f"nothing was recorded yet; start again with: {command}"
        raise Interrupted(kept) from interrupt


@contextlib.contextmanager
def _preparing(workers: int | None, address: str | None, mixed: bool) -> Iterator[dict[str, Any]]:
    """Give what a run needs to be told where it is computed: nothing in this process, else its workers."""
    if workers is None and address is None:
        if mixed:
            raise click.UsageError("--mix-devices goes with --workers or --ray")
        yield {}
        return
    from lowmem_layers.study.prepare import read_tasks
    from lowmem_layers.workers.hiring import hired

    with hired(workers, address, mixed=mixed, read=read_tasks) as prepare:
        yield {"prepare": prepare, "read": read_tasks}


def _preparing_here(*, is_shown: bool) -> dict[str, Any]:
    """Give what a run in this process needs to be told: the display wants to know what the machine can do."""
    from lowmem_layers.study.prepare import prepare_study, read_tasks

    return {"prepare": partial(prepare_study, measure=_measured if is_shown else None), "read": read_tasks}


def _free_the_model() -> None:
    """Free what the last run's model took, so that the next one sees the memory that it may take."""
    if "torch" in sys.modules:
        from lowmem_layers.model.memory import release_model

        release_model()


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Time bare matrix products, for the display to say which share of them the run reaches."""
    from lowmem_layers.forecast.machine import measure_products

    return measure_products(device, dtype, seconds=0.3)
