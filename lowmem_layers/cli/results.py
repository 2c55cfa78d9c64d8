"""Commands that read runs, finished or not: scores, importance, report, compare, interactions, tables."""

from __future__ import annotations

import click

from lowmem_layers.cli.options import ESTIMATOR_NAMES, VALUE_NAMES
from lowmem_layers.cli.output import chosen_format, data_options, note_chance, note_unfinished, say, write_data

VALUE = click.option(
    "--value", metavar="NAME", help=f"Measure importance by {VALUE_NAMES}. [default: the task's own metric]"
)
ESTIMATOR = click.option(
    "--estimator",
    metavar="NAME",
    help=f"Estimator: {ESTIMATOR_NAMES}. [default: the one that the run's coalitions were made for]",
)
LEVEL = click.option(
    "--level", type=float, metavar="P", default=0.95, show_default=True, help="Confidence level of the intervals."
)


@click.command()
@click.argument("run")
@data_options
def scores(run: str, form: str | None, output: str | None) -> None:
    """Write the log-likelihoods of a run.

    One row for each item, coalition and choice.
    """
    from lowmem_layers import open_run

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    write_data(opened.scores(), form, output)


@click.command()
@click.argument("run")
@VALUE
@ESTIMATOR
@LEVEL
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="K",
    default=3,
    help="The column top says who is certainly among the K most important sublayers, and who is not. [default: 3]",
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
    """Write how important each sublayer of a run is.

    One row for each task and sublayer (or group of sublayers).
    """
    from lowmem_layers import open_run

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    found = opened.importance(value, estimator, level, top)
    note_chance(value, opened)
    write_data(found, form, output)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    help="Write to this folder. [default: RUN/report; for several runs ./report]",
)
@click.option("--paper", is_flag=True, help="Also draw figures for a paper, as SVG, PNG and PDF, into figures/paper.")
def report(runs: tuple[str, ...], output: str | None, paper: bool) -> None:
    """Write figures, tables and a page about one or more runs.

    Several runs (models, tasks, quantisations) share one page, which compares each of them with the first. Prints the
    path of the page, which opens in a browser.
    """
    from lowmem_layers import open_run
    from lowmem_layers.report import write_joint_report, write_report

    opened = [open_run(run) for run in runs]
    if len(opened) == 1:
        page = write_report(opened[0], output, every_value=True)
    else:
        page = write_joint_report(opened, output or "report")
    if paper:
        from lowmem_layers.report.paper import write_paper_figures

        write_paper_figures(opened, page.parent / "figures" / "paper")
    click.echo(str(page))


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@VALUE
@ESTIMATOR
@click.option(
    "--max-removed", type=int, metavar="L", help="Use only windows of up to L. [default: all that both runs have]"
)
@LEVEL
@click.option(
    "--correction",
    metavar="holm|bh",
    default="holm",
    show_default=True,
    help="Correction for testing many sublayers: Holm limits the risk of one false claim, Benjamini–Hochberg (bh) the "
    "share of false claims.",
)
@click.option(
    "--equivalent-within",
    "margin",
    type=float,
    metavar="X",
    help="Test that differences are smaller than X, in the unit of the value (0.01 is one point of accuracy): "
    "then 'nothing changed' is proven, not only not disproven.",
)
@click.option("--agreement", is_flag=True, help="Write how far the rankings agree instead, one row for each task.")
@click.option("--figure", metavar="FILE", help="Also draw both runs and their differences into FILE.svg, .png or .pdf.")
@data_options
def compare(
    run_a: str,
    run_b: str,
    value: str | None,
    estimator: str | None,
    max_removed: int | None,
    level: float,
    correction: str,
    margin: float | None,
    agreement: bool,
    figure: str | None,
    form: str | None,
    output: str | None,
) -> None:
    """Write how two runs differ, sublayer by sublayer.

    Differences are RUN_A − RUN_B. How far the rankings agree, and which options differ, goes to stderr.
    """
    from lowmem_layers.findings import comparing
    from lowmem_layers.findings.equivalence import equivalence_lines, with_equivalence
    from lowmem_layers.findings.run import open_run

    # 1) what cannot be written is refused before anything is computed
    chosen_format(form, output)
    if figure is not None:
        from lowmem_layers.report.compared import figure_format

        figure_format(figure)
    # 2) the comparison: data to stdout, sentences to stderr
    runs = open_run(run_a), open_run(run_b)
    note_unfinished(*runs)
    found = comparing.compare_runs(*runs, value, estimator, max_removed, level, correction)
    note_chance(value, *runs)
    table = (comparing.agreement_table if agreement else comparing.comparison_table)(found)
    write_data(table if margin is None or agreement else with_equivalence(table, found, margin), form, output)
    unlike = comparing.differences(*runs)
    say(f"A and B differ in: {'; '.join(unlike) or 'none of their options'}")
    for line in (*comparing.agreement_lines(found), *(() if margin is None else equivalence_lines(found, margin))):
        say(line)
    # 3) the figure
    if figure is not None:
        from lowmem_layers.report.compared import draw_comparison

        draw_comparison(*runs, found, value, figure)


@click.command()
@click.argument("run")
@VALUE
@LEVEL
@data_options
def interactions(run: str, value: str | None, level: float, form: str | None, output: str | None) -> None:
    """Write which neighbouring sublayers of a run interact.

    One row for each task and pair: whether the two replace each other (redundancy) or need each other (synergy).
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.interactions import interaction_table

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    found = interaction_table(opened, value, level)
    note_chance(value, opened)
    write_data(found, form, output)


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--table", "number", type=click.IntRange(1, 4), metavar="1|2|3|4", default=1, help="Which table. [default: 1]"
)
@click.option(
    "--as-code",
    is_flag=True,
    help="Compute them to the last digit of the authors' public code: windows of up to 3, and accuracies without a "
    "sublayer rounded to 4 decimals first. [default for runs of --preset paper-code]",
)
@data_options
def tables(runs: tuple[str, ...], number: int, as_code: bool, form: str | None, output: str | None) -> None:
    """Write the paper's tables 1 to 4 for one or more runs.

    Shares and drops are in per cent. Several runs of one model may each hold another task. Where the paper has the
    model too, its numbers are beside ours.
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.paper import paper_table, tables_of

    chosen_format(form, output)
    opened = [open_run(run) for run in runs]
    note_unfinished(*opened)
    found = tables_of(opened, as_code=as_code)
    note_chance(None, *opened)
    write_data(paper_table(found, number), form, output, decimals=1)
