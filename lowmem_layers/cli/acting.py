"""Commands that act on a run: prune, and the proxies that others choose by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from lowmem_layers.cli.options import VALUE_NAMES
from lowmem_layers.cli.output import FORMATS, chosen_format, data_options, note_unfinished, say, write_data

if TYPE_CHECKING:
    from lowmem_layers.acting.choosing import Choice

_FORMS = ("zeroed", "layers", "nemotron", "mergekit")


@click.command()
@click.argument("run")
@click.option("--sublayers", metavar="NAMES", help="Remove these, for example attn.20,ffn.21.")
@click.option("--remove", type=click.IntRange(min=1), metavar="K", help="Remove the K sublayers that cost least.")
@click.option(
    "--decoder-layers", type=click.IntRange(min=1), metavar="K", help="Remove the K decoder layers that cost least."
)
@click.option(
    "--lose-at-most",
    type=float,
    metavar="X",
    help="Remove as many as may cost at most X points of accuracy (or nats) by the upper end of the 95 % interval.",
)
@click.option(
    "--form",
    "shape",
    metavar="|".join(_FORMS),
    help="How the model is written: the last matrices of removed sublayers zeroed; decoder layers cut out; NVIDIA's "
    "Nemotron-NAS form of a Llama; or recipes for mergekit and llama-quantize. [default: zeroed, for decoder layers "
    "layers]",
)
@click.option("-o", "--output", metavar="FOLDER", help="Write the model to this new folder. [default: write nothing]")
@click.option("--dtype", metavar="TYPE", help="Number type of what is written. [default: the checkpoint's own]")
@click.option("--value", metavar="NAME", help=f"Choose by {VALUE_NAMES}. [default: the task's own metric]")
@click.option("--no-measure", is_flag=True, help="Choose and write, but do not measure the result.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Seed of the random choices. [default: 0]"
)
@click.option("--format", "form", metavar="|".join(FORMATS), help="Format of the data. [default: table]")
def prune(
    run: str,
    shape: str | None,
    output: str | None,
    dtype: str | None,
    value: str | None,
    no_measure: bool,
    seed: int,
    form: str | None,
    **request: Any,
) -> None:
    """Take the sublayers that cost least out of a model.

    Chooses on one half of the run's items, writes the smaller model, and measures it on the other half, beside the full
    model and as many sublayers chosen at random. One row for each task and version.
    """
    from lowmem_layers import open_run
    from lowmem_layers.record.spec import DTYPES, one_of

    # 1) what cannot be meant is refused
    chosen_format(form, None)
    one_of("--dtype", dtype, DTYPES)
    default = "layers" if request["decoder_layers"] is not None else "zeroed"
    name = one_of("--form", shape, _FORMS) or default
    opened = open_run(run)
    note_unfinished(opened)
    # 2) the choice
    from lowmem_layers.acting.choosing import Request, choose
    from lowmem_layers.acting.prune import FORMS, inspect_run, write_pruned

    choice = choose(opened, Request(**request), FORMS[name], value)
    for line in _choice_lines(choice):
        say(line)
    # 3) the smaller model
    if output is not None:
        found = inspect_run(opened, cast("Any", dtype))
        for line in write_pruned(found, choice.removed, FORMS[name], Path(output), say):
            say(line)
        say(f"written: {output}")
    # 4) what it cost
    if not no_measure:
        from lowmem_layers.acting.outcome import measure_choice

        write_data(measure_choice(opened, choice, value, seed, say, Path(output) if output else None), form, None)


@click.command()
@click.argument("run")
@click.option("--value", metavar="NAME", help=f"Measure importance by {VALUE_NAMES}. [default: the task's own metric]")
@click.option(
    "--estimator",
    metavar="NAME",
    help="Estimator of importance. [default: the one that the run's coalitions were made for]",
)
@click.option("--agreement", is_flag=True, help="Write how far rankings agree instead, one row for each proxy.")
@data_options
def proxies(
    run: str, value: str | None, estimator: str | None, agreement: bool, form: str | None, output: str | None
) -> None:
    """Write proxies of importance beside the measured one.

    Block influence, angular distance, branch norm and largest activation, from one pass of the full model an item. How
    far their rankings are the measured one goes to stderr.
    """
    from lowmem_layers import open_run

    chosen_format(form, output)
    opened = open_run(run)
    note_unfinished(opened)
    from lowmem_layers.acting.proxies import measure_proxies, proxy_table, trust_lines, trust_table

    found = measure_proxies(opened, value, say, estimator)
    write_data((trust_table if agreement else proxy_table)(found), form, output)
    for line in trust_lines(found):
        say(line)


def _choice_lines(choice: Choice) -> list[str]:
    """Say what goes and what that is expected to cost."""
    from lowmem_layers.findings.words import counted, minus

    lines = [f"removed: {', '.join(choice.names)}"]
    if choice.n_items:
        metric, ci = choice.metric, choice.ci
        loss = minus(f"{choice.loss:.2f} {metric.unit} of {metric.words} [{ci.low:.2f}, {ci.high:.2f}]")
        lines.append(
            f"expected loss: {loss}, by the {counted(choice.n_items, 'item')} it was chosen by (a choice looks better "
            "on these than on others)"
        )
    return lines + [f"note: {line}" for line in choice.unknown]
