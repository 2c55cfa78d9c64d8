"""`run`: measure, record, show, and say at the end what was found and where it is."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from lowmem_layers.cli.display.choose import DISPLAYS, choose_display
from lowmem_layers.cli.entry import Interrupted
from lowmem_layers.cli.options import OUTPUT, GroupedCommand, GroupedOption, spec_from, study_options
from lowmem_layers.cli.output import SUMMARY_ROWS
from lowmem_layers.record.spec import default_folder


@click.command(cls=GroupedCommand)
@study_options
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
def run(out: str | None, display: str, all_rows: bool, **options: Any) -> None:
    """Measure which sublayers of a language model matter.

    The same command again continues an interrupted run.
    """
    # 1) the options are checked before anything heavy is imported
    spec = spec_from(options).resolved()
    folder = Path(out) if out else default_folder(spec)
    shown = choose_display(display, f"{Path(spec.model).name} · {spec.quant} · {','.join(spec.tasks)}")

    # 2) the run itself, and what was found: computed once, for the page and for the terminal
    try:
        with shown as announce:
            from lowmem_layers import run_study

            finished = run_study(spec, folder, announce=announce)
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
