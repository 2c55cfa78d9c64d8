"""How far may one trust a proxy? Block influence and its kin beside the measured importance, with rank correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from lowmem_layers.acting.versions import Version, checked_items, prepare_again
from lowmem_layers.engine.trunk import TrunkStatistics, trunk_statistics
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.comparing import correlation_words
from lowmem_layers.findings.importance import N_TOP
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import counted
from lowmem_layers.game.estimators.weights import Estimator, estimator_weights
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import Influence, estimate_influence, influence_of, mean_over_tasks
from lowmem_layers.game.uncertainty.intervals import mean_interval
from lowmem_layers.game.uncertainty.rank_correlation import Agreement, agreement
from lowmem_layers.game.uncertainty.ranks import ranks
from lowmem_layers.game.values.table import FloatArray
from lowmem_layers.record.spec import one_of
from lowmem_layers.study.contracts import Prepare, Prepared
from lowmem_layers.tasks.items import EncodedItem

Say = Callable[[str], None]
PROXIES = ("block_influence", "angular_distance", "branch_norm", "largest_activation")
PLAIN_ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True, eq=False)
class Proxies:
    """Proxies beside the measured importance, on the mean over tasks.

    Shapes: `importance` and each of `proxies` have (players,) values; their pieces of error stand side by side.
    """

    players: tuple[str, ...]
    estimator: str
    importance: Influence
    proxies: dict[str, Influence]
    level: float

    def agreement(self, name: str, seed: int = 0) -> Agreement:
        """Compare one proxy's ranking with the measured one."""
        one, two = self.importance, self.proxies[name]
        dof = np.fmin(one.dof, two.dof)
        top = min(N_TOP, len(self.players))
        return agreement(one.value, two.value, one.pieces, two.pieces, dof, level=self.level, top_k=top, seed=seed)


def measure_proxies(
    run: Run,
    value: str | None,
    say: Say,
    estimator: str | None = None,
    level: float = 0.95,
    prepare: Prepare | None = None,
) -> Proxies:
    """Measure the proxies on a run's items, by one pass of the full model an item.

    Raises:
        UsageError: the players are groups of sublayers, or removal orders were walked and no other estimator named.
        RecordError: the run's items are no longer what the tasks' data give.
    """
    design = run.manifest.design
    if design.grouping is not None:
        raise UsageError("proxies are known of single sublayers, and this run's players are groups of them")
    name = one_of("--estimator", estimator or design.estimator, PLAIN_ESTIMATORS)
    # 1) the statistics of every item that the run has finished
    tables = run.value_tables(value)
    prepared = prepare_again(run, say, prepare)
    items = {(item.task, item.id): item for item in checked_items(run, prepared)}
    parts: dict[str, list[Influence]] = {proxy: [] for proxy in ("", *PROXIES)}
    for table in tables:
        say(f"driving {counted(table.n_items, 'item')} of {table.task} through the full model")
        found = statistics_of(prepared, [items[table.task, item] for item in table.items or ()])
        # 2) importance and proxies, with pieces of error that stand side by side
        weights = estimator_weights(name, table.coalitions, table.players)
        measured = estimate_influence(table, weights)
        parts[""].append(measured)
        for proxy in PROXIES:
            own = influence_of(getattr(found, proxy), table.cluster_codes)
            rest = np.zeros((len(measured.pieces) - len(own.pieces), len(own.value)))  # of the coin-flip item
            parts[proxy].append(replace(own, pieces=np.concatenate([own.pieces, rest])))
    joined = {proxy: mean_over_tasks(each) for proxy, each in parts.items()}
    return Proxies(run.players, name, joined.pop(""), joined, level)


def statistics_of(prepared: Prepared, items: Sequence[EncodedItem]) -> TrunkStatistics:
    """Drive items through the prepared model."""
    engine: Any = prepared.engine
    return trunk_statistics(engine.model, items, engine.budget_bytes)


def block_influence_version(
    prepared: Prepared, items: Sequence[EncodedItem], units: Sequence[Removed], n_units: int
) -> Version:
    """Remove as many units as were chosen, those of the smallest block influence on the items it was chosen by."""
    found = statistics_of(prepared, items)
    by_player = found.block_influence.mean(axis=0)  # (players,)
    by_layer = found.layer_influence.mean(axis=0)  # (layers,)
    layers = [prepared.players[unit[0]].layer for unit in units]
    scores = [
        by_player[unit[0]] if len(unit) == 1 else by_layer[layer] for unit, layer in zip(units, layers, strict=True)
    ]
    smallest = np.argsort(scores, kind="stable")[:n_units]
    return Version("block influence", (tuple(sorted(p for place in smallest for p in units[place])),))


def proxy_table(found: Proxies) -> pa.Table:
    """Lay out the measured importance and the proxies: one row for each sublayer, ranks from 1 beside each."""
    ci = mean_interval(found.importance, found.level)
    columns: dict[str, Any] = {
        "sublayer": list(found.players),
        "estimator": [found.estimator] * len(found.players),
        "value": found.importance.value,
        "ci_low": ci.low,
        "ci_high": ci.high,
        "rank": _ranks(found.importance.value),
    }
    for name, proxy in found.proxies.items():
        columns |= {name: proxy.value, f"{name}_rank": _ranks(proxy.value)}
    return pa.table(columns)


def trust_table(found: Proxies) -> pa.Table:
    """Lay out how far each proxy's ranking is the measured one: one row for each proxy."""
    rows = []
    for name in found.proxies:
        same = found.agreement(name)
        rows.append(
            {
                "proxy": name,
                "spearman": same.spearman,
                "spearman_low": same.spearman_ci.low,
                "spearman_high": same.spearman_ci.high,
                "kendall": same.kendall,
                "kendall_low": same.kendall_ci.low,
                "kendall_high": same.kendall_ci.high,
                "top": same.top_k,
                "overlap": same.overlap,
                "overlap_low": same.overlap_ci.low,
                "overlap_high": same.overlap_ci.high,
            }
        )
    return pa.Table.from_pylist(rows)


def trust_lines(found: Proxies) -> list[str]:
    """Say in words how far each proxy's ranking is the measured one."""
    lines = []
    for name in found.proxies:
        same = found.agreement(name)
        top = f"{same.overlap} of its top {same.top_k} are the measured ones"
        lines.append(
            f"{name.replace('_', ' ')}: {correlation_words('Spearman', same.spearman, same.spearman_ci)} with the "
            f"measured importance; {top}"
        )
    return lines


def _ranks(values: FloatArray) -> pa.Array:
    return pa.array(ranks(values[None])[0].astype(np.int32))
