"""Commands over several records: compare, interactions, the study's tables."""

from __future__ import annotations

import click

from lowmem_layers.cli.output import as_text, chosen_format, data_options, write_data

_VALUE = click.option(
    "--value",
    metavar="NAME",
    help="acc, acc_norm, loglikelihood, margin, probability or nll_per_byte. [default: the task's own metric]",
)


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@_VALUE
@click.option("--estimator", metavar="NAME", default="neighbourhood", show_default=True)
@click.option("--max-removed", type=int, metavar="L", help="Use windows of up to L. [default: all, alike in both]")
@data_options
def compare(
    run_a: str,
    run_b: str,
    value: str | None,
    estimator: str,
    max_removed: int | None,
    form: str | None,
    output: str | None,
) -> None:
    """Write what differs between RUN_A and RUN_B, sublayer by sublayer; how far the rankings agree goes to stderr."""
    from lowmem_layers.study import open_run
    from lowmem_layers.study.comparing import agreement_table, compare_runs, comparison_table

    chosen_format(form, output)
    found = compare_runs(open_run(run_a), open_run(run_b), value, estimator, max_removed)
    write_data(comparison_table(found), form, output)
    click.echo(as_text(agreement_table(found)), err=True, nl=False)


@click.command()
@click.argument("run")
@_VALUE
@data_options
def interactions(run: str, value: str | None, form: str | None, output: str | None) -> None:
    """Write whether neighbouring sublayers of RUN are redundant or need each other, one row a pair."""
    from lowmem_layers.study import open_run
    from lowmem_layers.study.comparing import interaction_table

    chosen_format(form, output)
    write_data(interaction_table(open_run(run), value), form, output)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--table", "number", type=click.IntRange(1, 4), default=1, show_default=True, help="Which of the four.")
@data_options
def tables(runs: tuple[str, ...], number: int, form: str | None, output: str | None) -> None:
    """Write table 1, 2, 3 or 4 of the paper for these RUNS (shares and drops in per cent)."""
    from lowmem_layers.study import open_run
    from lowmem_layers.study.paper import paper_table, tables_of

    chosen_format(form, output)
    write_data(paper_table(tables_of([open_run(run) for run in runs]), number), form, output)
