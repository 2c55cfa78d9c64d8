"""`plan`: what a run would take, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import click

from lowmem_layers.cli.config import config_option
from lowmem_layers.cli.options import (
    MEMORY,
    OUTPUT,
    SIZE_WORDS,
    GroupedCommand,
    GroupedOption,
    spec_from,
    study_options,
)
from lowmem_layers.cli.output import chosen_format, data_options, say, write_data

if TYPE_CHECKING:
    from lowmem_layers.findings.power import Foretold
    from lowmem_layers.forecast.forecast import Forecast


@click.command(cls=GroupedCommand)
@study_options
@config_option
@click.option(
    "--for",
    "card",
    cls=GroupedOption,
    heading=MEMORY,
    metavar="CARD",
    help="Plan for this card, for example rtx-4090. [default: measure this machine]",
)
@click.option(
    "--workers",
    cls=GroupedOption,
    heading=MEMORY,
    metavar="N",
    type=int,
    help="Also say what N workers take, each with such a card or its share of this machine, and what limits them.",
)
@click.option(
    "--pilot",
    cls=GroupedOption,
    heading=OUTPUT,
    metavar="RUN",
    help="Also say how many items an effect takes, and how long they take, by the spread in this earlier run.",
)
@click.option("--size", cls=GroupedOption, heading=OUTPUT, type=float, metavar="X", help="With --pilot: " + SIZE_WORDS)
@data_options
def plan(
    card: str | None,
    workers: int | None,
    pilot: str | None,
    size: float | None,
    form: str | None,
    output: str | None,
    **options: Any,
) -> None:
    """Say what a run would take; loads no weights.

    Takes the options of run. --model also takes llama-3-8b, llama-3-70b and mixtral-8x7b, whose shapes are shipped.
    """
    if size is not None and pilot is None:
        raise click.UsageError("--size goes with --pilot")
    import pyarrow as pa

    from lowmem_layers.findings.power import foretell
    from lowmem_layers.findings.run import open_run
    from lowmem_layers.forecast.forecast import forecast_study
    from lowmem_layers.workers.hiring import check_number

    chosen_format(form, output)
    check_number(workers)
    # 1) the pilot first: what is wrong with it is said before anything is measured
    foretold = [] if pilot is None else foretell(open_run(pilot), options["value"], None, size)
    # 2) the forecast, and what it means for the items that the pilot asks for
    found = forecast_study(spec_from(options), card, workers)
    said = [*_rows(found), *_worker_rows(found), *_pilot_rows(foretold, found)]
    rows = [{"what": what, "value": value} for what, value in said]
    write_data(pa.Table.from_pylist(rows), form, output)
    if workers is not None and not found.machine.is_gpu:
        say("workers' speed is that of one alone: several share a CPU's caches and memory")
    if not found.machine.measured:
        from lowmem_layers.forecast.machine import SHEET_SHARES

        say(f"speeds are the card's data sheet, {SHEET_SHARES}: not a measurement")


def _rows(found: Forecast) -> list[tuple[str, str]]:
    """Put a forecast into words, a line a quantity."""
    from lowmem_layers.cli.display.progress import spell_time
    from lowmem_layers.model.spec import format_bytes

    work, shape, memory, tokens = found.work, found.shape, found.memory, found.tokens
    peak = f"{format_bytes(memory.peak_host)} of the host's"
    if memory.gpu:
        peak = f"{format_bytes(memory.gpu)} of the GPU's, {peak}"
    states = f"{format_bytes(work.state_bytes_per_token)} a token, {format_bytes(memory.states)} the largest tile"
    return [
        ("model", found.model),
        ("parameters", f"{shape.n_parameters:,}"),
        ("sublayers", f"{work.n_players}"),
        ("coalitions", f"{work.n_coalitions:,}"),
        ("sublayer applications", f"{work.applications:,} a token (naively {work.naive_applications:,})"),
        ("items", f"{len(tokens.trunk):,}"),
        ("tokens", f"{sum(tokens.trunk):,}, scored {sum(tokens.scored):,} ({tokens.whose})"),
        ("items cut on the left", "not known" if tokens.n_cut is None else f"{tokens.n_cut:,}"),
        ("floating-point operations", f"{work.flops:.3g}"),
        ("weights at home", f"{format_bytes(shape.n_bytes.packed)} ({memory.home})"),
        ("weights in the slot", format_bytes(memory.slots)),
        ("staging", format_bytes(memory.staging)),
        *([("quantised weights kept", format_bytes(memory.shelf))] if memory.shelf else []),
        ("embedding, norms, head", format_bytes(shape.n_bytes.resident)),
        ("states", states),
        ("intermediates or logits", format_bytes(memory.chunk)),
        ("tiles", f"{memory.n_tiles:,} of at most {memory.tile_tokens:,} tokens"),
        ("memory while loading", f"{format_bytes(memory.loading)} of the host's"),
        ("memory at the peak", peak),
        ("machine", f"{found.machine.name}: {2 * found.machine.macs_s / 1e12:.3g} TFLOP/s of bare matrix products"),
        ("hours based on", found.speed),
        ("computing", spell_time(work.compute_s)),
        ("norms, activations and the like", spell_time(work.elementwise_s)),
        ("unpacking weights", spell_time(work.unpacking_s)),
        ("bringing weights in", f"{spell_time(work.streaming_s)}, meanwhile"),
        ("in all, about", f"{spell_time(3600 * work.hours)} ({work.hours:.2f} h)"),
    ]


def _worker_rows(found: Forecast) -> list[tuple[str, str]]:
    """Say what several workers take, how well they are used, and what limits that."""
    from lowmem_layers.cli.display.progress import spell_time
    from lowmem_layers.model.spec import format_bytes

    several = found.workers
    if several is None:
        return []
    n, each = several.n_workers, several.n_tiles / several.n_workers
    read = f"{format_bytes(found.shape.n_bytes.packed + found.shape.n_bytes.resident)} for each, packed before"
    lost = "; ".join(f"{cause}: {100 * share:.1f} %" for cause, share in several.losses)
    return [
        ("workers", f"{n}, each as above"),
        ("memory of the host's, if all are on one", format_bytes(n * found.memory.peak_host)),
        ("starting and loading", f"{spell_time(several.loading_s)}: {read}, all from one cache at "
         f"{format_bytes(several.read_bytes_s)}/s"),
        ("tiles for each worker", f"{each:.1f} on average"),
        ("in all, with these workers, about", f"{spell_time(several.wall_s)} ({several.wall_s / 3600:.2f} h); "
         f"{several.alone_s / several.wall_s:.1f} times as fast as one that loads, too"),
        ("efficiency", f"{100 * several.efficiency:.1f} % of the workers' time is spent scoring"),
        ("what limits it", lost),
    ]  # fmt: skip


def _pilot_rows(foretold: Sequence[Foretold], found: Forecast) -> list[tuple[str, str]]:
    """Say how many items the pilot's spread asks for, and how long this run would take with so many."""
    from lowmem_layers.cli.display.progress import spell_time
    from lowmem_layers.findings.power import count_items

    rows = []
    for each in foretold:
        typical, most = each.typical, each.needed.items[each.worst]
        what = f"items for an effect of {each.needed.size:g} on {each.task} ({each.estimator})"
        rows.append(
            (
                what,
                f"{count_items(typical)} for the median sublayer, {count_items(most)} for {each.players[each.worst]}",
            )
        )
        hours = found.work.hours * typical / len(found.tokens.trunk)
        rows.append(("in all, with so many for the median", spell_time(3600 * hours) if isfinite(hours) else "unknown"))
    return rows
