"""Mixtures of formats beside uniform ones on the items that no choice has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_layers.acting.allotting import KEEP, BitsIn, Measured
from lowmem_layers.acting.choosing import is_held_out
from lowmem_layers.acting.proxies import statistics_of
from lowmem_layers.acting.versions import N_RANDOM, checked_items, held_out_items, measured_columns, values_of
from lowmem_layers.engine.changes import Changes
from lowmem_layers.errors import RemovalError
from lowmem_layers.findings.words import counted
from lowmem_layers.game.answers.allotment import allot
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, mean_over_tasks
from lowmem_layers.game.values.table import FloatArray, ValueTable
from lowmem_layers.model.change import REMOVE, QuantFormat
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.rounding import row_width
from lowmem_layers.model.load import Inspection
from lowmem_layers.study.contracts import Prepared
from lowmem_layers.tasks.items import EncodedItem
from lowmem_layers.tasks.metrics import metric_named

Mixture = tuple[int, ...]  # an option for each sublayer
Say = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """One way to give out bits, or several whose values are averaged. Units: `bits` a weight."""

    name: str
    mixtures: tuple[Mixture, ...]
    bits: float


def numbers_of(found: Inspection) -> list[int]:
    """Count the weights of each sublayer that a format rounds."""
    anatomy, counts = found.anatomy, [0] * len(found.anatomy.players)
    for place in found.places:
        if is_quantised(place):
            counts[[(p.layer, p.role) for p in anatomy.players].index((place.layer, place.kind))] += prod(place.shape)
    return counts


def bits_in(found: Inspection) -> BitsIn:
    """Make the function that says how many bits a weight each sublayer gets by a format, on average over its matrices.

    A matrix whose rows are no whole blocks gets the format that stands in.
    """
    places = [(p.layer, p.role) for p in found.anatomy.players]

    def of(into: QuantFormat) -> FloatArray:
        bits, numbers = np.zeros(len(places)), np.zeros(len(places))
        for place in found.places:
            if is_quantised(place):
                player = places.index((place.layer, place.kind))
                numbers[player] += prod(place.shape)
                bits[player] += prod(place.shape) * into.for_rows(row_width(place)).bits
        return bits / np.maximum(numbers, 1)  # (players,)

    return of


def own_bits(found: Inspection, of: str) -> float | None:
    """Tell the bits of a sublayer that stays as it is: an option where bitsandbytes runs the rest of a plain model."""
    return 8.0 * found.dtype.itemsize if of == "bitsandbytes" and found.own is None else None


def bits_of(measured: Measured, mixture: Mixture, numbers: Sequence[int]) -> float:
    """Average a mixture's bits over all weights."""
    return sum(n * measured.bits[i, o] for i, (n, o) in enumerate(zip(numbers, mixture, strict=True))) / sum(numbers)


def contenders(
    measured: Measured, chosen: Mixture, numbers: Sequence[int], budget: float, prepared: Prepared, seed: int, say: Say
) -> list[Contender]:
    """List the chosen mixture, each uniform format, the chosen bits dealt at random, and a proxy's choice.

    At random: the same formats, among the sublayers of the same size. By the proxy: each format's mean loss times the
    sublayer's block influence, on the items that are not held out.
    """
    found = [Contender("chosen", (chosen,), bits_of(measured, chosen, numbers))]
    for place, option in enumerate(measured.options):
        if option.name != KEEP:
            uniform = (place,) * len(chosen)
            found.append(Contender(f"all {option.name}", (uniform,), bits_of(measured, uniform, numbers)))
    # 1) at random
    rng, dealt = np.random.default_rng(seed), []
    for _ in range(N_RANDOM):
        mixture = np.array(chosen)
        for size in set(numbers):
            places = np.flatnonzero(np.array(numbers) == size)
            mixture[places] = rng.permutation(mixture[places])
        dealt.append(tuple(int(each) for each in mixture))
    found.append(Contender(f"random ({N_RANDOM} deals)", tuple(dealt), found[0].bits))
    # 2) by a proxy
    if hasattr(prepared.engine, "model"):  # not with a dictionary in the engine's place
        run = measured.runs[0]
        seen = [item for item in checked_items(run, prepared) if not is_held_out(item.task, item.cluster)]
        try:
            influence = statistics_of(prepared, seen).block_influence.mean(axis=0)  # (players,)
        except RemovalError as error:
            say(f"note: no choice by block influence: {error.message}")
            return found
        costs = np.outer(influence, measured.loss.mean(axis=0))  # (players, options)
        weights = np.array(numbers)[:, None] * measured.bits
        mixture = allot(costs, weights, budget * float(sum(numbers)))
        found.append(Contender("block influence", (mixture,), bits_of(measured, mixture, numbers)))
    return found


def measure_contenders(
    measured: Measured, prepared: Prepared, of: Sequence[Contender], value: str | None, say: Say, level: float = 0.95
) -> pa.Table:
    """Measure every contender on the held-out items: one row for each task (and their mean, `all`) and contender.

    Units: `value`, `loss` and `foreseen` those of the metric; `loss` is the full model's value less the contender's.
    """
    run, items = measured.runs[0], held_out_items(measured.runs[0], prepared)
    mixtures = list(dict.fromkeys(mixture for each in of for mixture in each.mixtures))
    say(f"measuring {counted(len(mixtures), 'mixture')} on {counted(len(items), 'held-out item')}")
    scores = _scores(measured, prepared, mixtures, items)
    # 1) each contender's weights: the mean over its mixtures
    column = {mixture: place + 1 for place, mixture in enumerate(mixtures)}
    shares = np.zeros((len(of), 1 + len(mixtures)))
    for row, each in enumerate(of):
        for mixture in each.mixtures:
            shares[row, column[mixture]] += 1.0 / len(each.mixtures)
    # 2) values and losses, task by task
    parts: list[tuple[str, int, Influence, Influence]] = []
    for task in run.tasks:
        chosen = [index for index, item in enumerate(items) if item.task == task]
        metric = value or run.metric(task)
        values = np.concatenate([values_of(items[index], np.array(scores[index]), metric) for index in chosen])
        codes = np.unique([items[index].cluster for index in chosen], return_inverse=True)[1]
        names = tuple(f"mixture {place}" for place in range(len(mixtures)))
        columns = ((), *((place,) for place in range(len(mixtures))))
        bounded = metric_named(metric).in_unit_interval
        table = ValueTable(names, columns, values, codes, task=task, in_unit_interval=bounded)
        lost = np.eye(1, shares.shape[1]) - shares  # (contenders, 1 + mixtures): the full model less the contender
        parts.append((task, len(chosen), estimate_influence(table, shares), estimate_influence(table, lost)))
    if len(parts) > 1:
        own, lost = mean_over_tasks([part[2] for part in parts]), mean_over_tasks([part[3] for part in parts])
        parts.append(("all", sum(part[1] for part in parts), own, lost))
    return _table(measured, of, parts, level)


def _scores(
    measured: Measured, prepared: Prepared, mixtures: Sequence[Mixture], items: Sequence[EncodedItem]
) -> list[list[np.ndarray]]:
    """Score items by the full model, then by each mixture: all sublayers changed at once, each in its own way.

    Shapes: for each item 1 + mixtures arrays (choices,), nats.
    """
    engine: Any = prepared.engine
    tiles = engine.plan_tiles(items, [(), tuple(range(len(prepared.players)))])
    scores: list[list[np.ndarray]] = [[] for _ in items]
    for mixture in (None, *mixtures):
        options = [] if mixture is None else [measured.options[option].change for option in mixture]
        changed = (
            engine
            if mixture is None
            else engine.changed(Changes(tuple(each or REMOVE for each in options), shelf=engine.changes.shelf))
        )
        coalition = tuple(place for place, each in enumerate(options) if each is not None)
        for tile in tiles:
            for index, block in zip(tile, changed.score([items[i] for i in tile], [coalition]), strict=True):
                scores[index].append(block[0])
    return scores


def _table(
    measured: Measured, of: Sequence[Contender], parts: Sequence[tuple[str, int, Influence, Influence]], level: float
) -> pa.Table:
    """Lay contenders out; what was foreseen stands beside the mean over tasks."""
    single = [each.mixtures[0] for each in of]
    seen, seen_ci = measured.foreseen(single, level)
    averages = [float(measured.foreseen(each.mixtures, level)[0].mean()) for each in of]
    rows = []
    for task, n_items, own, lost in parts:
        columns = measured_columns(own, lost, level)
        is_mean = task == parts[-1][0]
        for place, each in enumerate(of):
            alone = is_mean and len(each.mixtures) == 1
            rows.append({
                "task": task,
                "version": each.name,
                "bits": each.bits,
                **{name: column[place] for name, column in columns.items()},
                "foreseen": float(seen[place]) if alone else averages[place] if is_mean else None,
                "foreseen_ci_low": float(seen_ci.low[place]) if alone else None,
                "foreseen_ci_high": float(seen_ci.high[place]) if alone else None,
                "n_items": n_items,
            })  # fmt: skip
    return pa.Table.from_pylist(rows)
