"""Commands over several records: compare, interactions, the study's tables."""

from __future__ import annotations

import click

from lowmem_layers.cli.output import chosen_format, data_options, note_unfinished, write_data

_VALUE = click.option(
    "--value",
    metavar="NAME",
    help="acc, acc_norm, loglikelihood, margin, probability or nll_per_byte. [default: the task's own metric]",
)
_LEVEL = click.option("--level", type=float, default=0.95, show_default=True, help="Confidence level of the intervals.")


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@_VALUE
@click.option(
    "--estimator",
    metavar="NAME",
    help="neighbourhood, stratified, ablation, shapley or permutation. [default: what the coalitions are meant for]",
)
@click.option("--max-removed", type=int, metavar="L", help="Use windows of up to L. [default: all, alike in both]")
@_LEVEL
@click.option(
    "--correction",
    metavar="holm|bh",
    default="holm",
    show_default=True,
    help="For the number of sublayers: Holm (any false claim) or Benjamini–Hochberg (the share of false claims).",
)
@click.option("--agreement", is_flag=True, help="Write how far the rankings agree instead, one row a task.")
@click.option("--figure", metavar="FILE", help="Draw both and what differs into FILE.svg, .png or .pdf as well.")
@data_options
def compare(
    run_a: str,
    run_b: str,
    value: str | None,
    estimator: str | None,
    max_removed: int | None,
    level: float,
    correction: str,
    agreement: bool,
    figure: str | None,
    form: str | None,
    output: str | None,
) -> None:
    """Write what differs between RUN_A and RUN_B (A − B), sublayer by sublayer.

    How far the rankings agree, and what else is not the same in the runs, goes to stderr.
    """
    from lowmem_layers.findings import comparing
    from lowmem_layers.findings.run import open_run

    chosen_format(form, output)
    if figure is not None:
        from lowmem_layers.report.compared import figure_format

        figure_format(figure)
    runs = open_run(run_a), open_run(run_b)
    note_unfinished(*runs)
    found = comparing.compare_runs(*runs, value, estimator, max_removed, level, correction)
    write_data((comparing.agreement_table if agreement else comparing.comparison_table)(found), form, output)
    unlike = comparing.differences(*runs)
    click.echo(f"A and B differ in: {'; '.join(unlike) or 'nothing of what was asked'}", err=True)
    for line in comparing.agreement_lines(found):
        click.echo(line, err=True)
    if figure is not None:
        from lowmem_layers.report.compared import draw_comparison

        draw_comparison(*runs, found, value, figure)


@click.command()
@click.argument("run")
@_VALUE
@_LEVEL
@data_options
def interactions(run: str, value: str | None, level: float, form: str | None, output: str | None) -> None:
    """Write whether neighbouring sublayers of RUN are redundant or need each other, one row a task and pair."""
    from lowmem_layers import open_run
    from lowmem_layers.findings.comparing import interaction_table

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    write_data(interaction_table(opened, value, level), form, output)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--table", "number", type=click.IntRange(1, 4), default=1, show_default=True, help="Which of the four.")
@data_options
def tables(runs: tuple[str, ...], number: int, form: str | None, output: str | None) -> None:
    """Write table 1, 2, 3 or 4 of the paper for these RUNS (shares and drops in per cent).

    Runs of one model may hold a task each. The published numbers stand beside ours where the model is one of theirs.
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.paper import paper_table, tables_of

    chosen_format(form, output)
    opened = [open_run(run) for run in runs]
    note_unfinished(*opened)
    write_data(paper_table(tables_of(opened), number), form, output, decimals=1)
