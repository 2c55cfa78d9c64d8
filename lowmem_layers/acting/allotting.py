"""From runs of several formats to a format for each sublayer, under a budget of bits a weight.

What a format costs a sublayer is what it lost in that format's run, on the half of the items that is not held out. The
choice is made by the upper end of that loss's interval, as `prune` chooses: by the loss itself, the sublayers whose
loss is known least would get the fewest bits. What two neighbours in one format cost together beyond that counts where
it is significant; two formats count as the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowmem_layers.acting.choosing import half_tables, the_metric
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.answers.allotment import allot
from lowmem_layers.game.answers.interactions import interactions
from lowmem_layers.game.estimators.weights import largest_window
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import Interval, mean_interval
from lowmem_layers.game.values.table import FloatArray, ValueTable
from lowmem_layers.model.change import Change, QuantFormat, Runtime
from lowmem_layers.tasks.metrics import Metric

KEEP = "as it is"
BitsIn = Callable[[QuantFormat], FloatArray]  # a format → bits a weight of each sublayer


@dataclass(frozen=True)
class Option:
    """What a sublayer may become: its change (None: it stays as it is). Units: `bits` a weight."""

    name: str
    bits: float
    change: Change | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What each option costs each sublayer, on the items that are not held out.

    `tables` has, for each option with a run, its tables by task. Shapes: `loss` and `upper` (players, options), 0 where
    nothing changes; `bits` likewise, on average over a sublayer's weights; `pairs` (players − 1, options, options) or
    None. Units: those of the metric, unscaled; `bits` a weight.
    """

    runs: tuple[Run, ...]
    options: tuple[Option, ...]
    metric: Metric
    tables: tuple[tuple[ValueTable, ...] | None, ...]
    loss: FloatArray
    upper: FloatArray
    bits: FloatArray
    pairs: FloatArray | None

    @property
    def formats(self) -> tuple[QuantFormat, ...]:
        """List the formats of the runs."""
        return tuple(o.change.format for o in self.options if o.change is not None and o.change.format is not None)

    @property
    def words(self) -> str:
        """Say whether neighbours' interactions were taken into account."""
        if self.pairs is None:
            return "no significant interactions of neighbours are known, so losses are added up"
        return "with the significant interactions of neighbours"

    def choose(self, numbers: Sequence[int], budget_bits: float) -> tuple[int, ...]:
        """Choose an option for each sublayer. `numbers` counts each sublayer's weights.

        Raises:
            UsageError: the budget is below what the smallest format takes.
        """
        weights = np.array(numbers)[:, None] * self.bits  # (players, options)
        least = float(weights.min(axis=1).sum()) / sum(numbers)
        if not least <= budget_bits < np.inf:
            raise UsageError(
                f"--budget {budget_bits:g} is not a number of at least {least:g}, the bits that the smallest formats "
                "measured take",
                "allow more bits, or give the run of a smaller format as well",
            )
        return allot(self.upper, weights, budget_bits * float(sum(numbers)), self.pairs)

    def foreseen(
        self, mixtures: Sequence[Sequence[int]], level: float = 0.95
    ) -> tuple[FloatArray, Interval[FloatArray]]:
        """Expect the losses of mixtures: sums over sublayers, and over neighbours' significant interactions.

        Shapes: (mixtures,). The interval is that of the sum over sublayers.
        """
        known = {place: tables for place, tables in enumerate(self.tables) if tables is not None}
        parts = []
        for of_task in zip(*known.values(), strict=True):
            chosen = [np.array([[o == place for o in mixture] for mixture in mixtures], float) for place in known]
            weights = [each @ _loss_weights(table) for each, table in zip(chosen, of_task, strict=True)]
            parts.append(estimate_influence(_side_by_side(of_task), np.concatenate(weights, axis=1)))
        found = mean_over_tasks(parts)
        extra = np.zeros(len(mixtures))
        if self.pairs is not None:
            pairs = self.pairs
            extra += [sum(pairs[i, m[i], m[i + 1]] for i in range(len(m) - 1)) for m in mixtures]
        ci = mean_interval(found, level)
        return found.value + extra, Interval(ci.low + extra, ci.high + extra)


def measured(
    runs: Sequence[Run], value: str | None, own_bits: float | None, bits_in: BitsIn | None = None, level: float = 0.95
) -> Measured:
    """Put the runs of several formats side by side. `own_bits`: sublayers may also stay as they are, at these bits.

    `bits_in` says what a format takes in each sublayer (None: its own bits everywhere). The runs are those that
    `check_runs` lets pass.
    """
    options: list[Option] = []
    tables: list[tuple[ValueTable, ...] | None] = []
    losses: list[FloatArray] = []
    uppers: list[FloatArray] = []
    # 1) what each format costs each sublayer
    for run in sorted(runs, key=lambda run: run.manifest.change.bits):
        change = run.manifest.change
        halves = half_tables(run, value, held_out=False)
        found = mean_over_tasks([estimate_influence(table, _loss_weights(table)) for table in halves])
        options.append(Option(change.name.partition(":")[2], change.bits, change))
        tables.append(tuple(halves))
        losses.append(found.value)
        uppers.append(mean_interval(found, level).high)
    pairs = _pairs([of for of in tables if of is not None], level)
    # 2) staying as it is costs nothing
    if own_bits is not None:
        options.append(Option(KEEP, own_bits))
        tables.append(None)
        losses.append(np.zeros_like(losses[0]))
        uppers.append(np.zeros_like(uppers[0]))
        if pairs is not None:
            wide = np.zeros((len(pairs), len(options), len(options)))
            wide[:, :-1, :-1] = pairs
            pairs = wide
    # 3) what each option takes
    bits = np.tile([option.bits for option in options], (len(losses[0]), 1))  # (players, options)
    for place, option in enumerate(options):
        if bits_in is not None and option.change is not None and option.change.format is not None:
            bits[:, place] = bits_in(option.change.format)
    return Measured(
        tuple(runs), tuple(options), the_metric(runs[0], value), tuple(tables), np.array(losses).T, np.array(uppers).T,
        bits, pairs,
    )  # fmt: skip


def _loss_weights(table: ValueTable) -> FloatArray:
    """Give the loss by each single change as weights over coalitions. Shapes: (players, coalitions)."""
    weights = np.zeros((table.n_players, len(table.coalitions)))
    weights[:, table.column_index(())] = 1.0
    weights[range(table.n_players), [table.column_index((player,)) for player in range(table.n_players)]] = -1.0
    return weights


def _side_by_side(tables: Sequence[ValueTable]) -> ValueTable:
    """Put one task's tables of several formats into one, so that its intervals are those of its kind of value.

    Each column becomes a player of its own. Shapes: the columns follow each other, table by table.
    """
    values = np.concatenate([table.values for table in tables], axis=1)
    names = tuple(f"column {column}" for column in range(values.shape[1]))
    return replace(tables[0], players=names, coalitions=tuple((column,) for column in range(len(names))), values=values)


def _pairs(tables: Sequence[Sequence[ValueTable]], level: float) -> FloatArray | None:
    """Give what neighbours in two formats cost beyond their own losses; None where no run has windows of two.

    Shapes: (players − 1, options, options).
    """
    each = []
    for halves in tables:
        extra = np.zeros(halves[0].n_players - 1)
        if largest_window(halves[0].coalitions, halves[0].n_players) >= 2:
            found = interactions(halves, level=level)
            near = found.second == found.first + 1
            extra[found.first[near]] = -np.where(found.significant, found.value, 0.0)[near]
        each.append(extra)
    of = np.array(each)  # (options, players − 1)
    return (of[:, None] + of[None]).transpose(2, 0, 1) / 2 if of.any() else None


def check_runs(runs: Sequence[Run]) -> Runtime:
    """See that runs can be put side by side; name the program that runs their formats.

    Raises:
        UsageError: they cannot.
    """
    formats = []
    for run in runs:
        into = run.manifest.change.format
        if into is None:
            raise UsageError(
                f"{run.folder}: its sublayers were {run.manifest.change.words}, not quantised",
                "measure formats with lowmem-layers run --change quantise:FORMAT",
            )
        if run.manifest.design.grouping is not None:
            raise UsageError(f"{run.folder}: its players are not single sublayers", "run it without --players")
        formats.append(into)
    if len(set(formats)) < len(formats):
        raise UsageError(f"two runs are of one format: {', '.join(into.name for into in formats)}", "give one of each")
    if len({into.runtime for into in formats}) > 1 or (formats[0].runtime == "bitsandbytes" and len(formats) > 1):
        raise UsageError(
            f"no program runs these formats in one model: {', '.join(into.name for into in formats)}",
            "give runs of llama.cpp's formats, or one run of a format of bitsandbytes",
        )
    first = runs[0].manifest
    for run in runs[1:]:
        other = run.manifest
        same = (first.model.fingerprint, first.model.dtype, first.design.sublayers)
        if same != (other.model.fingerprint, other.model.dtype, other.design.sublayers):
            raise UsageError(f"{runs[0].folder} and {run.folder} are not of one model and number type")
        if [(t.task, t.fingerprint) for t in first.data] != [(t.task, t.fingerprint) for t in other.data]:
            raise UsageError(f"{runs[0].folder} and {run.folder} did not measure the same items")
        if run.is_unfinished or runs[0].is_unfinished:
            raise UsageError(f"{run.folder} or {runs[0].folder} is not finished", "finish both: run the command again")
    return formats[0].runtime
