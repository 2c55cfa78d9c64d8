"""Commands that ask more of a run than what it found: how long it must be, and which items it hangs on."""

from __future__ import annotations

import click

from lowmem_layers.cli.options import SIZE_WORDS
from lowmem_layers.cli.output import chosen_format, data_options, note_chance, note_unfinished, say, write_data
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
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.power import foretell, power_lines, power_table, value_lines

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    found = foretell(opened, value, estimator, size, level, power)
    note_chance(value, opened)
    write_data(power_table(found), form, output)
    for line in (*power_lines(found), *value_lines(opened, level, power)):
        say(line)


@click.command()
@click.argument("run")
@VALUE
@ESTIMATOR
@click.option("--sublayers", metavar="NAMES", help="Only these, joined by commas. [default: all]")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="K",
    default=3,
    show_default=True,
    help="How many items of each sublayer: those without which its estimate moves farthest.",
)
@click.option("--by-cluster", is_flag=True, help="Leave out whole clusters, such as all questions about one passage.")
@data_options
def items(
    run: str,
    value: str | None,
    estimator: str | None,
    sublayers: str | None,
    top: int,
    by_cluster: bool,
    form: str | None,
    output: str | None,
) -> None:
    """Write which items drive the estimate of each sublayer.

    One row for each task, sublayer and item: what the estimate is without the item, and how much of it the largest 1 %
    of all items carry.
    """
    from lowmem_layers import open_run
    from lowmem_layers.findings.drivers import driver_lines, driver_table, find_drivers

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    found = find_drivers(opened, value, estimator, by_cluster=by_cluster)
    note_chance(value, opened)
    names = [] if sublayers is None else [name.strip() for name in sublayers.split(",")]
    write_data(driver_table(found, top, names, by_cluster=by_cluster), form, output)
    for line in driver_lines(found, by_cluster=by_cluster):
        say(line)
