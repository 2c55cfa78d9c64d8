"""`run`: measure, record, show, and say at the end what was found and where it is."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lowmem_layers.cli.config import config_option
from lowmem_layers.cli.display.choose import DISPLAYS, choose_display
from lowmem_layers.cli.entry import Interrupted
from lowmem_layers.cli.options import OUTPUT, GroupedCommand, GroupedOption, spec_from, study_options, worker_options
from lowmem_layers.cli.output import SUMMARY_ROWS
from lowmem_layers.record.spec import default_folder
from lowmem_layers.study.events import Announce, Event, MachineMeasured, ModelExamined, ModelPlaced


@click.command(cls=GroupedCommand)
@study_options
@worker_options
@config_option
@click.option(
    "--out",
    cls=GroupedOption,
    heading=OUTPUT,
    metavar="RUN",
    help="Run folder. The same command again continues the run in it. [default: runs/…, named after the options]",
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

    The same command again continues an interrupted run.
    """
    # 1) the options are checked before anything heavy is imported
    spec = spec_from(options).resolved()
    folder = Path(out) if out else default_folder(spec)
    shown = choose_display(display, f"{Path(spec.model).name} · {spec.quant} · {','.join(spec.tasks)}")

    # 2) the run itself, and what was found: computed once, for the page and for the terminal
    try:
        with _preparing(workers, ray, mix_devices) as preparing, shown as announce:
            from lowmem_layers import run_study

            alone = "prepare" not in preparing
            heard = _with_ceiling(announce) if alone and display != "none" else announce
            finished = run_study(spec, folder, announce=heard, **preparing)
        from lowmem_layers.findings.findings import find
        from lowmem_layers.report import write_report

        findings = find(finished)
        page = write_report(finished, formats=("svg",), findings=findings)
    except KeyboardInterrupt as interrupt:
        command = shlex.join(["lowmem-layers", *sys.argv[1:]])
        kept = f"finished tiles are kept in {folder}; to go on: {command}"
        begun = (folder / "run.json").exists()
        raise Interrupted(kept if begun else f"nothing was recorded yet; start again with: {command}") from interrupt
    if display in ("json", "none"):
        click.echo(str(finished.folder))
        return
    from lowmem_layers.cli.summary import summarise

    summarise(finished, findings, page, n_rows=None if all_rows else SUMMARY_ROWS)


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


def _with_ceiling(announce: Announce) -> Announce:
    """Time bare matrix products once, before scoring, for the display to say which share of them the run reaches."""
    placed: list[ModelPlaced] = []

    def announced(event: Event) -> None:
        announce(event)
        if isinstance(event, ModelPlaced):
            placed.append(event)
        elif isinstance(event, ModelExamined) and placed:
            import torch

            from lowmem_layers.forecast.machine import measure_products

            device, dtype = torch.device(placed[-1].device), getattr(torch, placed[-1].dtype)
            announce(MachineMeasured(measure_products(device, dtype, seconds=0.3)))

    return announced
