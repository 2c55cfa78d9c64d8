"""`plan`: what a run would take, before anything is loaded."""

from __future__ import annotations

from typing import Any

import click

from lowmem_layers.cli.options import spec_from, study_options
from lowmem_layers.cli.output import chosen_format, data_options, write_data


@click.command()
@study_options
@click.option("--for", "card", metavar="CARD", help="Plan for a card, e.g. rtx-4090. [default: measure this machine]")
@data_options
def plan(card: str | None, form: str | None, output: str | None, **options: Any) -> None:
    """Say what a run would take; loads no weights.

    Takes the options of run. --model also takes llama-3-8b, llama-3-70b and mixtral-8x7b, whose shapes are shipped.
    """
    import pyarrow as pa

    from lowmem_layers.study.planning import plan_study

    chosen_format(form, output)
    found = plan_study(spec_from(options), card)
    rows = [{"what": what, "value": value} for what, value in _rows(found)]
    write_data(pa.Table.from_pylist(rows), form, output)
    if not found.machine.measured:
        click.echo("speeds are the card's data sheet at 60 % of its peak, not a measurement", err=True)


def _rows(found: Any) -> list[tuple[str, str]]:
    from lowmem_layers.cli.display.progress import spell_time
    from lowmem_layers.model.spec import format_bytes

    work, shape = found.work, found.shape
    return [
        ("model", found.model),
        ("parameters", f"{shape.n_parameters:,}"),
        ("sublayers", f"{work.n_players}"),
        ("coalitions", f"{work.n_coalitions:,}"),
        ("sublayer applications", f"{work.applications:,} a token (naively {work.naive_applications:,})"),
        ("items", f"{found.n_items:,}"),
        ("tokens", f"{found.trunk_tokens:,}, scored {found.scored_tokens:,} (counted with {found.tokenizer})"),
        ("floating-point operations", f"{work.flops:.3g}"),
        ("weights at home", f"{format_bytes(work.home_bytes)} ({found.home})"),
        ("weights in the slot", format_bytes(work.slot_bytes)),
        ("staging", format_bytes(work.staging_bytes)),
        ("embedding, norms, head", format_bytes(work.resident_bytes)),
        ("states", f"{format_bytes(work.state_bytes_per_token)} a token, {found.tile_tokens:,} tokens a tile at most"),
        ("machine", f"{found.machine.name}: {2 * found.machine.macs_s / 1e12:.3g} TFLOP/s"),
        ("computing", spell_time(work.compute_s)),
        ("bringing weights in", spell_time(work.streaming_s)),
        ("in all, about", f"{spell_time(3600 * work.hours)} ({work.hours:.2f} h)"),
    ]
