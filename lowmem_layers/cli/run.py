"""`run`: measure, record, show, and say at the end what was found and where it is."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from lowmem_layers.cli.interrupt import Interrupted
from lowmem_layers.cli.options import spec_from, study_options

if TYPE_CHECKING:
    from lowmem_layers import Run
    from lowmem_layers.record.spec import Specification


@click.command()
@study_options
@click.option(
    "--out", metavar="RUN", help="Run folder; the same command again resumes. [default: runs/…, by the options]"
)
@click.option(
    "--display",
    metavar="auto|rich|plain|json|none",
    default="auto",
    show_default=True,
    help="Progress, on stderr. With json and none, stdout gets the run folder only.",
)
def run(out: str | None, display: str, **options: Any) -> None:
    """Measure which sublayers of a language model matter for a task.

    The same command again goes on where an interrupted one stopped.
    """
    spec = spec_from(options).resolved()
    from lowmem_layers.cli.display import choose_display
    from lowmem_layers.record.spec import default_folder

    folder = Path(out) if out else default_folder(spec)
    shown = choose_display(display, _title(spec))
    try:
        with _terminated_as_interrupted(), shown:
            from lowmem_layers import run_study

            finished = run_study(spec, folder, announce=shown)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(_how_to_resume(folder)) from interrupt
    _conclude(finished, display)


def _title(resolved: Specification) -> str:
    model = Path(resolved.model).name
    return f"{model} · {resolved.quant} · {','.join(resolved.tasks)}"


def _conclude(finished: Run, display: str) -> None:
    from lowmem_layers.report import write_report

    page = write_report(finished, formats=("svg",))
    if display in ("json", "none"):
        click.echo(str(finished.folder))
        return
    from lowmem_layers.cli.summary import summarise

    summarise(finished, page)


def _how_to_resume(folder: Path) -> str:
    command = shlex.join(["lowmem-layers", *sys.argv[1:]])
    if not (folder / "run.json").exists():
        return f"nothing was recorded yet; start again with: {command}"
    return f"finished tiles are kept in {folder}; to go on: {command}"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that a run stopped by a job scheduler leaves a consistent record too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
