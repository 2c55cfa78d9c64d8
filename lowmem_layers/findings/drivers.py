"""Which items of a run drive a sublayer's estimate, so that three odd items are seen as three odd items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError, did_you_mean
from lowmem_layers.findings.importance import ESTIMATORS
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import minus
from lowmem_layers.game.answers.drivers import Drivers, drivers
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.record.spec import one_of


@dataclass(frozen=True, eq=False)
class Driven:
    """One task's estimates and the units that drive them: items, or clusters. `units` names them, as the data do."""

    task: str
    estimator: str
    players: tuple[str, ...]
    units: tuple[str, ...]
    of: Drivers


def find_drivers(
    run: Run, value: str | None = None, estimator: str | None = None, *, by_cluster: bool = False
) -> list[Driven]:
    """Leave out each item (or cluster) of each task.

    Raises:
        UsageError: removal orders, an unknown value or estimator, or a task with a single item.
    """
    name = run.manifest.design.estimator if estimator is None else one_of("--estimator", estimator, ESTIMATORS)
    if name == "permutation":
        raise UsageError(
            "estimates from removal orders are not followed back to items", "ask about the drops: --estimator ablation"
        )
    clusters = {(row.task, row.id): row.cluster for row in run.item_rows}
    found = []
    for table in run.value_tables(value):
        items: tuple[str, ...] = table.items or ()
        units = items
        if by_cluster:  # the codes number the clusters; any of a cluster's items knows its name
            member = np.unique(table.cluster_codes, return_index=True)[1]
            units = tuple(clusters[table.task, items[int(place)]] for place in member)
        weights = estimator_weights(name, table.coalitions, table.players)
        of = drivers(table, weights, by_cluster=by_cluster)
        found.append(Driven(table.task, name, table.players, units, of))
    return found


def driver_table(
    found: Sequence[Driven], top: int = 3, sublayers: Sequence[str] = (), *, by_cluster: bool = False
) -> pa.Table:
    """Lay out, for each task and player, the `top` items that move the estimate most: one row each.

    `sublayers` names the players to show, all where it is empty.

    Raises:
        UsageError: a name that is no player.
    """
    parts = []
    for each in found:
        of = each.of
        for name in sublayers:
            if name not in each.players:
                raise UsageError(
                    f"{name!r} is no sublayer of this run", f"{did_you_mean(name, each.players)}see importance"
                )
        share, left = of.largest()
        for place, player in enumerate(each.players):
            if sublayers and player not in sublayers:
                continue
            order = of.order(place)[:top]
            n = len(order)
            columns: dict[str, Any] = {
                "task": [each.task] * n,
                "sublayer": [player] * n,
                "estimator": [each.estimator] * n,
                "value": np.full(n, of.value[place]),
                "cluster" if by_cluster else "item": [each.units[unit] for unit in order],
                "contribution": of.sums[order, place] / of.sizes[order],
                "value_without": of.without[order, place],
                "change": of.without[order, place] - of.value[place],
                "share_of_largest": np.full(n, share[place]),
                "value_without_largest": np.full(n, left[place]),
                "n_items": of.sizes[order],
            }
            parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def driver_lines(found: Sequence[Driven], *, by_cluster: bool = False) -> list[str]:
    """Say how much of the estimates the largest 1 % of items carry: a line for each task.

    Only estimates count that are at least a tenth of the largest one: a share of nearly nothing says nothing.
    """
    lines, what = [], "clusters" if by_cluster else "items"
    for each in found:
        share, left = each.of.largest()
        size = np.abs(each.of.value)
        counted = np.flatnonzero(np.isfinite(share) & (size > 0) & (size >= 0.1 * np.nanmax(size, initial=0.0)))
        if len(counted) == 0:
            continue
        most = int(counted[np.argmax(share[counted])])
        lines.append(
            f"{each.task}: the largest 1 % of {what} ({each.of.n_largest} of {len(each.of.sizes):,}) carry "
            f"{100 * np.median(share[counted]):.0f} % of the median estimate, and {100 * share[most]:.0f} % of that of "
            f"{each.players[most]}, the most: {each.of.value[most]:.4g} is {left[most]:.4g} without them"
        )
    return [minus(line) for line in lines]
