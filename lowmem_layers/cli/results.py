"""Commands that read a finished (or unfinished) record."""

from __future__ import annotations

import click

from lowmem_layers.cli.output import chosen_format, data_options, note_unfinished, write_data


@click.command()
@click.argument("run")
@data_options
def scores(run: str, form: str | None, output: str | None) -> None:
    """Write the log-likelihoods of RUN, one row an item, coalition and choice."""
    from lowmem_layers import open_run

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    write_data(opened.scores(), form, output)


@click.command()
@click.argument("run")
@click.option(
    "--value",
    metavar="NAME",
    help="acc, acc_norm, loglikelihood, margin, probability or nll_per_byte. [default: the task's own metric]",
)
@click.option(
    "--estimator",
    metavar="NAME",
    help="neighbourhood, stratified, ablation, shapley or permutation. [default: what the coalitions are meant for]",
)
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence level of the intervals.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Column top: who is certainly in or out of the first so many.",
)
@data_options
def importance(
    run: str,
    value: str | None,
    estimator: str | None,
    level: float,
    top: int,
    form: str | None,
    output: str | None,
) -> None:
    """Write the importance of every sublayer (or group) of RUN, one row a task and sublayer."""
    from lowmem_layers import open_run

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    write_data(opened.importance(value, estimator, level, top), form, output)


@click.command()
@click.argument("run")
@click.option("-o", "--output", metavar="FOLDER", help="Write there. [default: RUN/report]")
def report(run: str, output: str | None) -> None:
    """Write tables, figures and a page about RUN; print where the page is."""
    from lowmem_layers import open_run
    from lowmem_layers.report import write_report

    click.echo(str(write_report(open_run(run), output)))
