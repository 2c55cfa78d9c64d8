"""How biased is neighbourhood sampling? The study names this question among its limitations.

    python -m benchmarks.bias --data-dir FOLDER [--tasks …] [--items 4] [--orders 2] [--shuffles 1] [--scores FILE]
                              [--figure DIR]

The neighbourhood estimate departs from the Shapley value in two ways: at most four sublayers are removed at a time, and
the removed ones are neighbours. To tell the two apart, estimates from the same real items are compared on SmolLM2-135M:

    sublayers   all 60 sublayers: the neighbourhood estimate is compared with *random windows* (sets of up to four
                sublayers that need not be neighbours: the windows of a shuffled model) and with whole removal orders
                (unbiased for the Shapley value, never cut); both come in antithetic pairs
    groups      12 players, each of five consecutive sublayers, and all 4,096 coalitions: every estimator is compared
                with the exact Shapley value, and with the exact mean over all sets of at most four removed players

Each item draws its own orders and shuffles, from its name and the seed. A mean over items is then also a mean over
draws, and the one piece of error that each item gives contains both kinds of noise. Estimates are compared item by
item. All coalitions go through the same prefix-sharing sweep. Values: the gold answer's log-likelihood (it has no lower
bound, so coalitions with nearly everything removed weigh most), its probability among the choices, and the task's own
metric. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bias_figure import draw_bias
from benchmarks.setting import finish, parser, start
from lowmem_layers.engine import ready_engine
from lowmem_layers.game.estimators.permutation import Order
from lowmem_layers.game.estimators.terms import Term
from lowmem_layers.game.estimators.weights import estimator_weights, weight_matrix
from lowmem_layers.game.players.coalitions import (
    Removed,
    all_coalitions,
    chain,
    chain_coalitions,
    permutations,
    windows,
)
from lowmem_layers.game.players.groups import Group, Grouping, grouped_table
from lowmem_layers.game.uncertainty.errors import Influence, contributions, influence_of
from lowmem_layers.game.uncertainty.intervals import mean_interval, two_sided_p
from lowmem_layers.game.uncertainty.multiplicity import adjusted
from lowmem_layers.game.uncertainty.rank_correlation import agreement
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks import EncodedItem, Item, Task, encode_task, item_values, load_tasks

VALUES = ("loglikelihood", "probability", "metric")
N_GROUPS = 12
LARGEST = 4


@dataclass(frozen=True)
class Draws:
    """The whole removal orders and the shuffled models of one item; every item is also measured with all windows."""

    orders: list[Order]
    shuffles: list[Order]

    def coalitions(self, n_players: int) -> list[Removed]:
        """List the windows, the shuffled models' windows and the orders' walks, each once."""
        random = [r for shuffle in self.shuffles for block in blocks_of(shuffle) for r in chain_coalitions(block)]
        return list(dict.fromkeys([*windows(n_players, LARGEST), *random, *chain_coalitions(self.orders)]))


def main() -> None:
    """Score both sets of coalitions, compare the estimators and print one JSON document."""
    options = options_of()
    model = start(options)
    tasks = load_tasks(options.tasks.split(","), data_dir=Path(options.data_dir), limit=options.items)
    encoded = [i for t in tasks for i in encode_task(t, model.tokenizer, bos="none", max_length=model.max_length)]
    names = tuple(player.name for player in model.players)
    grouping = twelve_groups(names)
    each = options.items if options.group_items is None else options.group_items
    items = [(task, item) for task in tasks for item in task.items]
    of_groups = [(task, item) for task in tasks for item in task.items[:each]]
    draws = [draws_of(f"{task.name} {item.id}", len(names), options) for task, item in items]
    wanted = [each.coalitions(len(names)) for each in draws]
    whole = grouping.expand_all(all_coalitions(N_GROUPS))
    place = {(item.task, item.id): item for item in encoded}
    own = [place[task.name, item.id] for task, item in items]
    scores = scored("sublayers", model, own, wanted, options)
    own = [place[task.name, item.id] for task, item in of_groups]
    group_scores = scored("groups", model, own, [whole] * len(own), options)
    results: dict[str, Any] = {}
    for value in VALUES:
        rows = [table_of(names, *row, value) for row in zip(wanted, items, scores, strict=True)]
        found = {"sublayers": over_sublayers(rows, draws)}
        if of_groups:
            rows = [table_of(names, whole, *row, value) for row in zip(of_groups, group_scores, strict=True)]
            table = grouped_table(ValueTable(names, tuple(whole), np.concatenate([r.values for r in rows])), grouping)
            few = [draws_of(f"{task.name} {item.id}", N_GROUPS, options).orders for task, item in of_groups]
            found["groups"] = over_groups(table, few)
        results[value] = found
        report(value, found)
    if options.figure:
        draw_bias(results, options.figure)
    finish({"benchmark": "bias", "results": results}, options)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.set_defaults(items=4)
    options.add_argument("--tasks", default="arc_easy,piqa,winogrande,openbookqa")
    options.add_argument("--group-items", type=int, help="items of each benchmark for the groups. [default: --items]")
    options.add_argument("--orders", type=int, default=2, help="whole removal orders an item, in antithetic pairs")
    options.add_argument("--shuffles", type=int, default=1, help="shuffled models an item, cut into windows of four")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--scores", type=Path, help="keep each item's log-likelihoods in this .npz, and continue from them"
    )
    options.add_argument("--figure", type=Path, help="folder for the figure")
    return options.parse_args()


def twelve_groups(names: Sequence[str]) -> Grouping:
    """Cut the sublayers into 12 runs of (nearly) equal length."""
    members = [tuple(int(i) for i in part) for part in np.array_split(np.arange(len(names)), N_GROUPS)]
    return Grouping(tuple(Group(f"{names[m[0]]}…{names[m[-1]]}", m) for m in members))


def draws_of(item: str, n_players: int, options: argparse.Namespace) -> Draws:
    """Draw an item's own orders and shuffles; the same name and seed give the same draws."""
    seed = zlib.crc32(f"{options.seed} {item}".encode())
    return Draws(
        permutations(n_players, options.orders, seed), permutations(n_players, 2 * options.shuffles, seed + 1)[::2]
    )


def scored(
    part: str,
    model: DecoderModel,
    items: list[EncodedItem],
    wanted: list[list[Removed]],
    options: argparse.Namespace,
) -> list[np.ndarray]:
    """Score each item under its coalitions, or read its scores from the file.

    Shapes: (coalitions, choices) for each item.
    """
    file = options.scores.with_suffix(f".{part}.npz") if options.scores else None
    found: dict[str, np.ndarray] = {}
    if file is not None and file.exists():
        with np.load(file) as kept:
            found = {name: kept[name] for name in kept}
    drawn = f"{options.orders} {options.shuffles} {options.seed}" if part == "sublayers" else ""
    names = [f"{item.task} {item.id} {drawn}".replace("/", "_") for item in items]
    rest = [place for place, name in enumerate(names) if name not in found]
    engine, begin = ready_engine(model), time.perf_counter()
    work = sum(engine.work([items[place]], wanted[place]) for place in rest)
    print(f"{part}: {len(rest)} items, {work / 1e12:.1f} TMAC", flush=True)
    for done, place in enumerate(rest, 1):
        found[names[place]] = engine.score([items[place]], wanted[place])[0]
        if file is not None and (done % 10 == 0 or done == len(rest)):
            np.savez(file, allow_pickle=False, **found)
        print(f"  {done} items, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(f"{part}: {time.perf_counter() - begin:.0f} s, {engine.counted_applications} applications", flush=True)
    return [found[name] for name in names]


def table_of(
    names: tuple[str, ...], coalitions: Sequence[Removed], given: tuple[Task, Item], found: np.ndarray, value: str
) -> ValueTable:
    """Turn an item's log-likelihoods into its value under each coalition: a table of one row."""
    task, item = given
    chars, sizes = np.array([item.choice_chars]), np.array([item.choice_bytes])
    name = task.metric if value == "metric" else value
    row = item_values(found[None], np.array([item.gold]), chars, sizes, name)
    return ValueTable(names, tuple(coalitions), row)


def blocks_of(shuffle: Sequence[int]) -> list[list[Order]]:
    """Cut a shuffled model into windows of four, each to be removed from either end: an antithetic pair."""
    blocks = [tuple(shuffle[start : start + LARGEST]) for start in range(0, len(shuffle), LARGEST)]
    return [[block, block[::-1]] for block in blocks]


def marginals(table: ValueTable, orders: Sequence[Order]) -> np.ndarray:
    """Average the marginal contributions of one row along walks that take each player equally often."""
    total, times = np.zeros(table.n_players), np.zeros(table.n_players)
    for order in orders:
        column = np.array([table.column(removed)[0] for removed in chain(order)])
        total[list(order)] += column[:-1] - column[1:]
        times[list(order)] += 1
    return total / times


def random_windows(row: ValueTable, draws: Draws) -> np.ndarray:
    """Average one item's marginal contributions within random windows; each shuffle has every player twice.

    The average is unbiased for the mean over 0 to 3 other removed players, whichever these are.
    """
    return marginals(row, [order for shuffle in draws.shuffles for pair in blocks_of(shuffle) for order in pair])


def truncated_terms(player: int, n_players: int) -> list[Term]:
    """Weight marginal contributions as Shapley does, but only down to sets of at most four removed."""
    others = [p for p in range(n_players) if p != player]
    return [
        (gone, tuple(sorted((*gone, player))), 1.0 / (LARGEST * comb(len(others), size)))
        for size in range(LARGEST)
        for gone in combinations(others, size)
    ]


def linear(table: ValueTable, weights: np.ndarray) -> Influence:
    """Estimate with fixed weights. The pieces of error are the items', then for accuracies the coin-flip item's: one
    for each coalition of the table, so that estimates from one table stay side by side."""
    found = influence_of(contributions(table, weights), table.cluster_codes)
    if not table.is_binary:
        return found
    return Influence(found.value, np.concatenate([found.pieces, 0.5 / table.n_items * weights.T]), found.dof, True)


def from_windows(table: ValueTable) -> dict[str, Influence]:
    """Compute the estimators that windows allow."""
    found = {}
    for name in ("neighbourhood", "stratified", "ablation"):
        largest = None if name == "ablation" else LARGEST
        found[name] = linear(table, estimator_weights(name, table.coalitions, table.players, largest))
    return found


def per_item(rows: Sequence[np.ndarray]) -> Influence:
    """Average the estimates of single items."""
    return influence_of(np.stack(rows), np.arange(len(rows)))


def over_sublayers(rows: Sequence[ValueTable], draws: Sequence[Draws]) -> dict[str, Any]:
    """Hold the windows' estimators against random windows and against whole orders."""
    n_players = rows[0].n_players
    shared = tuple(windows(n_players, LARGEST))
    values = np.stack([[row.column(removed)[0] for removed in shared] for row in rows])
    table = ValueTable(rows[0].players, shared, values)
    truths = {
        "random windows": per_item([random_windows(row, own) for row, own in zip(rows, draws, strict=True)]),
        "permutation": per_item([marginals(row, own.orders) for row, own in zip(rows, draws, strict=True)]),
    }
    total = np.mean([row.column(())[0] - row.column(tuple(range(n_players)))[0] for row in rows])
    return described(table, from_windows(table), truths, float(total))


def over_groups(table: ValueTable, orders: Sequence[Sequence[Order]]) -> dict[str, Any]:
    """Hold every estimator against exact values, whole and of at most four removed."""
    terms = [truncated_terms(player, table.n_players) for player in range(table.n_players)]
    truths = {
        "up to four": linear(table, weight_matrix(terms, table.coalitions, table.players)),
        "shapley": linear(table, estimator_weights("shapley", table.coalitions, table.players)),
    }
    rows = [ValueTable(table.players, table.coalitions, row[None]) for row in table.values]
    walked = per_item([marginals(row, own) for row, own in zip(rows, orders, strict=True)])
    total = float(table.mean(()) - table.mean(tuple(range(table.n_players))))
    return described(table, {**from_windows(table), "permutation": walked}, truths, total)


def described(
    table: ValueTable, found: dict[str, Influence], truths: dict[str, Influence], total: float
) -> dict[str, Any]:
    """Compare each estimate with each truth, and the truths with each other."""
    everything = {**found, **truths}
    bounds = {name: mean_interval(each, 0.95) for name, each in everything.items()}
    return {
        "players": table.players,
        "items": table.n_items,
        "full_minus_none": total,
        "value": {name: each.value.tolist() for name, each in everything.items()},
        "low": {name: ci.low.tolist() for name, ci in bounds.items()},
        "high": {name: ci.high.tolist() for name, ci in bounds.items()},
        "agreement": {
            f"{name} / {against}": compared(table.players, everything[name], truth, total)
            for against, truth in truths.items()
            for name in everything
            if name != against
        },
    }


def compared(players: Sequence[str], one: Influence, truth: Influence, total: float) -> dict[str, Any]:
    """Compare two estimates from the same items, item by item; `differ` gives the significant differences (Holm, 95 %),
    the largest first."""
    rows = max(len(one.pieces), len(truth.pieces))  # only the coin-flip item's rows, which come last, can be missing
    first, second = (np.pad(each.pieces, ((0, rows - len(each.pieces)), (0, 0))) for each in (one, truth))
    found = agreement(one.value, truth.value, first, second, np.minimum(one.dof, truth.dof))
    binary = one.is_binary and truth.is_binary
    gap = Influence(one.value - truth.value, first - second, np.minimum(one.dof, truth.dof), binary)
    corrected = adjusted(two_sided_p(gap), "holm")
    return {
        "spearman": [found.spearman, found.spearman_ci.low, found.spearman_ci.high],
        "kendall": [found.kendall, found.kendall_ci.low, found.kendall_ci.high],
        "top3": [found.overlap, found.overlap_ci.low, found.overlap_ci.high],
        "resolved": found.resolved,
        "differ": {players[p]: float(gap.value[p]) for p in np.argsort(-np.abs(gap.value)) if corrected[p] < 0.05},
        "sum_over_total": float(one.value.sum() / total) if total else None,
        "truth_sum_over_total": float(truth.value.sum() / total) if total else None,
    }


def report(value: str, result: dict[str, Any]) -> None:
    """Print one line a comparison."""
    for part, found in result.items():
        for name, row in found["agreement"].items():
            (rho, low, high), (tau, *_), (top, least, most) = row["spearman"], row["kendall"], row["top3"]
            part_of_total = row["sum_over_total"]  # none where removing everything costs nothing on these items
            differ = len(row["differ"])
            covers = "" if part_of_total is None else f"  sum {part_of_total:.2f} of v(N) − v(∅)"
            print(
                f"{value:14s} {part:10s} {name:32s} Spearman {rho:.2f} [{low:.2f}, {high:.2f}]  Kendall {tau:.2f}  "
                f"top 3: {top} [{least:.0f}, {most:.0f}]  differ: {differ} of {len(found['players'])}{covers}"
            )


if __name__ == "__main__":
    main()
