"""Commands that ask more of a run than what it found: how long it must be, and which items it hangs on."""

from __future__ import annotations

import click

from lowmem_layers.cli.options import SIZE_WORDS
from lowmem_layers.cli.output import chosen_format, data_options, note_unfinished, visible, write_data
from lowmem_layers.cli.results import ESTIMATOR, LEVEL, VALUE


@click.command()
@click.argument("run")
@VALUE
@ESTIMATOR
@click.option("--size", type=float, metavar="X", help=SIZE_WORDS)
@LEVEL
@click.option(
    "--power", type=float, metavar="P", default=0.8, show_default=True, help="How often the effect is to be resolved."
)
@data_options
def power(
    run: str,
    value: str | None,
    estimator: str | None,
    size: float | None,
    level: float,
    power: float,
    form: str | None,
    output: str | None,
) -> None:
    """Write how many items it takes to resolve an effect.

    One row for each task, estimator and sublayer: so many items make the interval of an effect of this size exclude 0,
    if all coalitions are measured on the same items, and (unpaired) if each is measured on items of its own. What the
    other values would need goes to stderr.

    \b
    Example: lowmem-layers power RUN --value probability --size 0.005
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.power import foretell, power_lines, power_table, value_lines

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    found = foretell(opened, value, estimator, size, level, power)
    write_data(power_table(found), form, output)
    for line in (*power_lines(found), *value_lines(opened, level, power)):
        click.echo(visible(line), err=True)
