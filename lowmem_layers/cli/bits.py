"""`bits`: from runs of several formats to a format for each sublayer, under a budget."""

from __future__ import annotations

from pathlib import Path

import click

from lowmem_layers.cli.options import VALUE_NAMES
from lowmem_layers.cli.output import FORMATS, chosen_format, note_unfinished, say, write_data


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--budget", type=float, required=True, metavar="BITS", help="Bits a weight, scales included.")
@click.option("-o", "--output", metavar="FOLDER", help="Write what other programs take here. [default: write nothing]")
@click.option("--value", metavar="NAME", help=f"Choose by {VALUE_NAMES}. [default: the task's own metric]")
@click.option("--no-measure", is_flag=True, help="Choose and write, but do not measure the result.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Seed of the random choices. [default: 0]"
)
@click.option("--format", "form", metavar="|".join(FORMATS), help="Format of the data. [default: table]")
def bits(
    runs: tuple[str, ...], budget: float, output: str | None, value: str | None, no_measure: bool, seed: int,
    form: str | None,
) -> None:  # fmt: skip
    """Choose each sublayer's format under a bit budget.

    Takes finished runs of run --change quantise:FORMAT, one for each format. Chooses on one half of their items, writes
    the options of llama-quantize or bitsandbytes, and measures the mixture on the other half, beside uniform formats.
    Bits are those of the decoder layers' linear weights: embedding and head are not counted.
    """
    from lowmem_layers import open_run

    chosen_format(form, None)
    opened = [open_run(run) for run in runs]
    for run in opened:
        note_unfinished(run)
    from lowmem_layers.acting.allotting import check_runs, measured
    from lowmem_layers.acting.bit_files import write_files
    from lowmem_layers.acting.mixtures import bits_in, bits_of, contenders, measure_contenders, numbers_of, own_bits
    from lowmem_layers.acting.versions import prepare_again
    from lowmem_layers.findings.words import minus
    from lowmem_layers.model.load import inspect_model
    from lowmem_layers.study.prepare import model_spec

    # 1) the choice
    runtime = check_runs(opened)
    found = inspect_model(model_spec(opened[0].manifest.resolved))
    known, numbers = measured(opened, value, own_bits(found, runtime), bits_in(found)), numbers_of(found)
    chosen = known.choose(numbers, budget)
    for place, option in enumerate(known.options):
        given = [player.name for player, its in zip(found.anatomy.players, chosen, strict=True) if its == place]
        if given:
            least, most = (f"{end(known.bits[:, place]):.4g}" for end in (min, max))
            say(f"{option.name} ({least if least == most else f'{least} to {most}'} bits): {', '.join(given)}")
    loss, ci = known.foreseen([chosen])
    metric, ends = known.metric, ci.at(0).times(known.metric.scale)
    expected = minus(f"{loss[0] * metric.scale:.2f} [{ends.low:.2f}, {ends.high:.2f}]")
    say(
        f"{bits_of(known, chosen, numbers):.3f} bits a weight; expected loss {expected} {metric.unit} of "
        f"{metric.words}, by the items it was chosen by (a choice looks better on these than on others); {known.words}"
    )
    # 2) what other programs take
    if output is not None:
        for line in write_files(found, known, chosen, Path(output)):
            say(line)
    # 3) what it cost
    if not no_measure:
        prepared = prepare_again(opened[0], say)
        others = contenders(known, chosen, numbers, budget, prepared, seed, say)
        write_data(measure_contenders(known, prepared, others, value, say), form, None)
