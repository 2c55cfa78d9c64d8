"""How biased is neighbourhood sampling? The study's own limitation section asks.

    python -m benchmarks.bias --data-dir FOLDER [--tasks …] [--items 4] [--orders 20] [--shuffles 10] [--scores FILE]
                              [--figure DIR]

The neighbourhood estimate departs from the Shapley value in two ways: at most four sublayers are ever removed, and
those removed are neighbours. On SmolLM2-135M with real items, estimates from the same items are held against each
other so that the two are told apart:

    sublayers   all 60: the neighbourhood estimate against *random windows* (sets of up to four that need not be
                neighbours: a shuffled model's neighbourhoods, in antithetic pairs) and against whole removal orders
                (unbiased for the Shapley value, never cut, in antithetic pairs)
    groups      12 players, each five consecutive sublayers, all 4,096 coalitions: every estimator against the exact
                Shapley value, and against the exact mean over all sets of at most four removed

All coalitions go through the same prefix-sharing sweep. Values: gold answer's log-likelihood (unbounded below, so that
removing nearly everything weighs most), its probability among the choices, and each task's own metric. The last line
is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bias_figure import draw_bias
from benchmarks.setting import finish, parser, start
from lowmem_layers.engine import Engine
from lowmem_layers.game.coalitions import Removed, all_coalitions, chain, chain_coalitions, permutations, windows
from lowmem_layers.game.groups import Grouping, grouped_table
from lowmem_layers.game.influence import Influence, estimate_influence, influence_of
from lowmem_layers.game.intervals import mean_interval
from lowmem_layers.game.permutation import Order, permutation_influence
from lowmem_layers.game.rank_correlation import agreement
from lowmem_layers.game.table import ValueTable
from lowmem_layers.game.terms import Term
from lowmem_layers.game.weights import estimator_weights, weight_matrix
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.tasks import EncodedItem, Item, Task, encode_task, item_values, load_tasks

VALUES = ("loglikelihood", "probability", "metric")
N_GROUPS = 12
LARGEST = 4


def main() -> None:
    """Score both sets of coalitions, compare the estimators and print one JSON document."""
    options = options_of()
    model = start(options)
    tasks = load_tasks(options.tasks.split(","), data_dir=Path(options.data_dir), limit=options.items)
    encoded = [i for t in tasks for i in encode_task(t, model.tokenizer, bos="none", max_length=model.max_length)]
    names = tuple(player.name for player in model.players)
    grouping = twelve_groups(names)
    orders = permutations(len(names), options.orders, options.seed)
    few = permutations(N_GROUPS, options.orders, options.seed)
    shuffles = permutations(len(names), options.shuffles, options.seed + 1)
    random = [removed for shuffle in shuffles for block in blocks_of(shuffle) for removed in chain_coalitions(block)]
    wanted = {
        "sublayers": list(dict.fromkeys([*windows(len(names), LARGEST), *random, *chain_coalitions(orders)])),
        "groups": grouping.expand_all(all_coalitions(N_GROUPS)),
    }
    each = options.group_items or options.items
    items = {
        "sublayers": [(task, item) for task in tasks for item in task.items],
        "groups": [(task, item) for task in tasks for item in task.items[:each]],
    }
    place = {(item.task, item.id): item for item in encoded}
    scores = {
        part: scored(part, model, [place[task.name, item.id] for task, item in items[part]], coalitions, options)
        for part, coalitions in wanted.items()
    }
    results: dict[str, Any] = {}
    for value in VALUES:
        whole = table_of(names, wanted["sublayers"], items["sublayers"], scores["sublayers"], value)
        of_each = table_of(names, wanted["groups"], items["groups"], scores["groups"], value)
        groups = grouped_table(of_each, grouping)
        results[value] = {"sublayers": of_sublayers(whole, orders, shuffles), "groups": of_groups(groups, few)}
        report(value, results[value])
    if options.figure:
        draw_bias(results, options.figure)
    finish({"benchmark": "bias", "results": results}, options)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.set_defaults(items=4)
    options.add_argument("--tasks", default="arc_easy,piqa,winogrande,openbookqa")
    options.add_argument("--group-items", type=int, help="items of each benchmark for the groups. [default: --items]")
    options.add_argument("--orders", type=int, default=20, help="whole removal orders, in antithetic pairs")
    options.add_argument("--shuffles", type=int, default=10, help="shuffled models cut into windows of four")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--scores", type=Path, help="keep log-likelihoods in this .npz, tile by tile, and go on from it"
    )
    options.add_argument("--figure", type=Path, help="folder for the figure")
    return options.parse_args()


def twelve_groups(names: Sequence[str]) -> Grouping:
    """Cut the sublayers into 12 runs of (nearly) equal length."""
    members = [tuple(int(i) for i in part) for part in np.array_split(np.arange(len(names)), N_GROUPS)]
    return Grouping(tuple(f"{names[m[0]]}…{names[m[-1]]}" for m in members), tuple(members))


def scored(
    part: str,
    model: DecoderModel,
    items: list[EncodedItem],
    coalitions: list[Removed],
    options: argparse.Namespace,
) -> list[np.ndarray]:
    """Score all items under all coalitions, or take what was kept. Shapes: (coalitions, choices) an item."""
    file = options.scores.with_suffix(f".{part}.npz") if options.scores else None
    found: dict[str, np.ndarray] = {}
    if file is not None and file.exists():
        with np.load(file) as kept:
            found = {name: kept[name] for name in kept}
    names = [f"{item.task} {item.id}".replace("/", "_") for item in items]
    rest = [item for name, item in zip(names, items, strict=True) if name not in found]
    left = [name for name in names if name not in found]
    engine, begin = Engine(model), time.perf_counter()
    print(f"{part}: {len(coalitions)} coalitions, {len(rest)} items, {engine.work(rest, coalitions) / 1e12:.1f} TMAC")
    for tile in engine.plan_tiles(rest, coalitions) if rest else ():
        scores = engine.score([rest[place] for place in tile], coalitions)
        found |= dict(zip([left[place] for place in tile], scores, strict=True))
        if file is not None:
            np.savez(file, **found)  # pyright: ignore
        print(f"  {len(found)} items, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(f"{part}: {time.perf_counter() - begin:.0f} s, {engine.counted_applications} applications", flush=True)
    return [found[name] for name in names]


def table_of(
    names: tuple[str, ...],
    coalitions: Sequence[Removed],
    items: Sequence[tuple[Task, Item]],
    scores: Sequence[np.ndarray],
    value: str,
) -> ValueTable:
    """Turn log-likelihoods into one value an item and coalition; tasks have equal numbers of items."""
    rows = []
    for (task, item), found in zip(items, scores, strict=True):
        chars, sizes = np.array([item.choice_chars]), np.array([item.choice_bytes])
        name = task.metric if value == "metric" else value
        rows.append(item_values(found[None], np.array([item.gold]), chars, sizes, name)[0])
    return ValueTable(names, tuple(coalitions), np.stack(rows))


def blocks_of(shuffle: Sequence[int]) -> list[list[Order]]:
    """Cut a shuffled model into windows of four, each to be removed from either end: an antithetic pair."""
    blocks = [tuple(shuffle[start : start + LARGEST]) for start in range(0, len(shuffle), LARGEST)]
    return [[block, block[::-1]] for block in blocks]


def random_windows(table: ValueTable, shuffles: Sequence[Order]) -> Influence:
    """Average the marginal contributions within random windows: every player once or twice a shuffle, at any depth.

    Unbiased for the mean over sizes 0..3 of the removed others, which may be any. The error has a piece for each item
    and one for each shuffle.
    """
    per_item = np.zeros((table.n_items, table.n_players))
    per_shuffle = np.zeros((len(shuffles), table.n_players))
    for row, shuffle in enumerate(shuffles):
        for order in [order for pair in blocks_of(shuffle) for order in pair]:
            columns = np.stack([table.column(removed) for removed in chain(order)], axis=1)
            steps = columns[:, :-1] - columns[:, 1:]
            per_item[:, list(order)] += steps / (2 * len(shuffles))
            per_shuffle[row, list(order)] += steps.mean(axis=0) / 2
    items, draws = influence_of(per_item, table.cluster_codes), influence_of(per_shuffle, np.arange(len(shuffles)))
    return Influence(items.value, np.concatenate([items.pieces, draws.pieces]), np.minimum(items.dof, draws.dof))


def truncated_terms(player: int, n_players: int) -> list[Term]:
    """Weight marginal contributions as Shapley does, but only down to sets of at most four removed."""
    others = [p for p in range(n_players) if p != player]
    return [
        (gone, tuple(sorted((*gone, player))), 1.0 / (LARGEST * comb(len(others), size)))
        for size in range(LARGEST)
        for gone in combinations(others, size)
    ]


def linear(table: ValueTable) -> dict[str, Influence]:
    """Compute the estimators that windows allow."""
    found = {}
    for name in ("neighbourhood", "stratified", "ablation"):
        largest = None if name == "ablation" else LARGEST
        found[name] = estimate_influence(table, estimator_weights(name, table.coalitions, table.players, largest))
    return found


def of_sublayers(table: ValueTable, orders: Sequence[Order], shuffles: Sequence[Order]) -> dict[str, Any]:
    """Hold the windows' estimators against random windows and against whole orders."""
    truths = {"random windows": random_windows(table, shuffles), "permutation": permutation_influence(table, orders)}
    return described(table, linear(table), truths)


def of_groups(table: ValueTable, orders: Sequence[Order]) -> dict[str, Any]:
    """Hold every estimator against exact values, whole and of at most four removed."""
    terms = [truncated_terms(player, table.n_players) for player in range(table.n_players)]
    truths = {
        "up to four": estimate_influence(table, weight_matrix(terms, table.coalitions, table.players)),
        "shapley": estimate_influence(table, estimator_weights("shapley", table.coalitions, table.players)),
    }
    return described(table, {**linear(table), "permutation": permutation_influence(table, orders)}, truths)


def described(table: ValueTable, found: dict[str, Influence], truths: dict[str, Influence]) -> dict[str, Any]:
    """Compare each estimate with each truth, and the truths with each other."""
    total = float(table.mean(()) - table.mean(tuple(range(table.n_players))))
    everything = {**found, **truths}
    bounds = {name: mean_interval(each, 0.95) for name, each in everything.items()}
    return {
        "players": table.players,
        "items": table.n_items,
        "full_minus_none": total,
        "value": {name: each.value.tolist() for name, each in everything.items()},
        "low": {name: low.tolist() for name, (low, _) in bounds.items()},
        "high": {name: high.tolist() for name, (_, high) in bounds.items()},
        "agreement": {
            f"{name} / {against}": compared(everything[name], truth, total)
            for against, truth in truths.items()
            for name in everything
            if name != against
        },
    }


def compared(one: Influence, truth: Influence, total: float) -> dict[str, Any]:
    """Compare one estimate with the truth. Both rest on the same items; only one may rest on drawn orders too."""
    rows = max(len(one.pieces), len(truth.pieces))
    padded = [np.pad(each.pieces, ((0, rows - len(each.pieces)), (0, 0))) for each in (one, truth)]
    found = agreement(one.value, truth.value, padded[0], padded[1], np.minimum(one.dof, truth.dof))
    (low_a, high_a), (low_b, high_b) = mean_interval(one, 0.95), mean_interval(truth, 0.95)
    return {
        "spearman": [found.spearman, found.spearman_low, found.spearman_high],
        "kendall": [found.kendall, found.kendall_low, found.kendall_high],
        "top3": [found.overlap, found.overlap_low, found.overlap_high],
        "intervals_that_meet": float(np.mean((low_a <= high_b) & (low_b <= high_a))),
        "sum_over_total": float(one.value.sum() / total) if total else float("nan"),
        "truth_sum_over_total": float(truth.value.sum() / total) if total else float("nan"),
    }


def report(value: str, result: dict[str, Any]) -> None:
    """Print one line a comparison."""
    for part, found in result.items():
        for name, row in found["agreement"].items():
            (rho, low, high), (tau, *_), (top, *_) = row["spearman"], row["kendall"], row["top3"]
            print(
                f"{value:14s} {part:10s} {name:32s} Spearman {rho:.2f} [{low:.2f}, {high:.2f}]  Kendall {tau:.2f}  "
                f"top 3: {top}  sum {row['sum_over_total']:.2f} of v(N) − v(∅)"
            )


if __name__ == "__main__":
    main()
