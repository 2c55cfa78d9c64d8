"""How biased is neighbourhood sampling? The study's own limitation section asks.

    python -m benchmarks.bias --data-dir FOLDER [--items 4] [--orders 40] [--scores FILE.npz] [--figure FOLDER]

On SmolLM2-135M with real items, two comparisons, each of estimates from the same items:

    sublayers   the neighbourhood estimate of all 60 (windows of up to 4) against unbiased permutation sampling: whole
                walks from the full model down to none, never cut, in antithetic pairs
    groups      12 players, each five consecutive sublayers: exact Shapley values from all 4,096 coalitions against the
                neighbourhood estimate, its stratified form, single removals and permutation sampling of these players

All coalitions go through the same prefix-sharing sweep. Values: gold answer's log-likelihood (unbounded below, so deep
removals weigh much), its probability among the choices, and each task's own metric. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bias_figure import draw_bias
from benchmarks.setting import finish, parser, start
from lowmem_layers.engine import Engine
from lowmem_layers.game.coalitions import Removed, all_coalitions, chain_coalitions, permutations, windows
from lowmem_layers.game.groups import Grouping, grouped_table
from lowmem_layers.game.influence import Influence, estimate_influence
from lowmem_layers.game.intervals import mean_interval
from lowmem_layers.game.permutation import Order, permutation_influence
from lowmem_layers.game.rank_correlation import agreement
from lowmem_layers.game.table import ValueTable
from lowmem_layers.game.weights import estimator_weights
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.tasks import EncodedItem, Item, Task, encode_task, item_values, load_tasks

TASKS = ("arc_easy", "piqa", "winogrande", "openbookqa")
VALUES = ("loglikelihood", "probability", "metric")
N_GROUPS = 12
LARGEST = 4


def main() -> None:
    """Score both sets of coalitions, compare the estimators and print one JSON document."""
    options = options_of()
    model = start(options)
    tasks = load_tasks(TASKS, data_dir=Path(options.data_dir), limit=options.items)
    encoded = [i for t in tasks for i in encode_task(t, model.tokenizer, bos="none", max_length=model.max_length)]
    names = tuple(player.name for player in model.players)
    grouping = twelve_groups(names)
    orders = permutations(len(names), options.orders, options.seed)
    few = permutations(N_GROUPS, options.orders, options.seed)
    wanted = {
        "sublayers": list(dict.fromkeys([*windows(len(names), LARGEST), *chain_coalitions(orders)])),
        "groups": grouping.expand_all(all_coalitions(N_GROUPS)),
    }
    scores = {part: scored(part, model, encoded, coalitions, options) for part, coalitions in wanted.items()}
    items = [(task, item) for task in tasks for item in task.items]
    results: dict[str, Any] = {}
    for value in VALUES:
        whole = table_of(names, wanted["sublayers"], items, scores["sublayers"], value)
        groups = grouped_table(table_of(names, wanted["groups"], items, scores["groups"], value), grouping)
        results[value] = {"sublayers": against_orders(whole, orders), "groups": against_exact(groups, few)}
        report(value, results[value])
    if options.figure:
        draw_bias(results, options.figure)
    finish({"benchmark": "bias", "tasks": TASKS, "results": results}, options)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.set_defaults(items=4)
    options.add_argument("--orders", type=int, default=40, help="removal orders, in antithetic pairs")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--scores", type=Path, help="keep the log-likelihoods in this .npz, and go on from it")
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
    if file is not None and file.exists():
        kept = np.load(file)
        return [kept[f"item{index}"] for index in range(len(items))]
    engine = Engine(model)
    tiles, found = engine.plan_tiles(items, coalitions), {}
    print(f"{part}: {len(coalitions)} coalitions, {len(items)} items, {engine.work(items, coalitions) / 1e12:.1f} TMAC")
    begin = time.perf_counter()
    for tile in tiles:
        found |= dict(zip(tile, engine.score([items[i] for i in tile], coalitions), strict=True))
        print(f"  {len(found)} items, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    print(f"{part}: {time.perf_counter() - begin:.0f} s, {engine.counted_applications} applications", flush=True)
    if file is not None:
        np.savez(file, **{f"item{index}": found[index] for index in range(len(items))})  # pyright: ignore
    return [found[index] for index in range(len(items))]


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


def estimates(table: ValueTable, orders: Sequence[Order], *, with_exact: bool) -> dict[str, Influence]:
    """Compute every estimator from the same table."""
    found: dict[str, Influence] = {"permutation": permutation_influence(table, orders)}
    for name in ("neighbourhood", "stratified", "ablation"):
        largest = None if name == "ablation" else LARGEST
        found[name] = estimate_influence(table, estimator_weights(name, table.coalitions, table.players, largest))
    if with_exact:
        found["shapley"] = estimate_influence(table, estimator_weights("shapley", table.coalitions, table.players))
    return found


def against_orders(table: ValueTable, orders: Sequence[Order]) -> dict[str, Any]:
    """Hold the neighbourhood estimate and its relatives against permutation sampling."""
    return described(table, estimates(table, orders, with_exact=False), "permutation")


def against_exact(table: ValueTable, orders: Sequence[Order]) -> dict[str, Any]:
    """Hold every estimator against exact values."""
    return described(table, estimates(table, orders, with_exact=True), "shapley")


def described(table: ValueTable, found: dict[str, Influence], truth: str) -> dict[str, Any]:
    """Compare each estimate with the truth: ranks, the top 3, the sum, and how many intervals overlap."""
    total = float(table.mean(()) - table.mean(tuple(range(table.n_players))))
    bounds = {name: mean_interval(each, 0.95) for name, each in found.items()}
    return {
        "players": table.players,
        "items": table.n_items,
        "full_minus_none": total,
        "value": {name: each.value.tolist() for name, each in found.items()},
        "low": {name: low.tolist() for name, (low, _) in bounds.items()},
        "high": {name: high.tolist() for name, (_, high) in bounds.items()},
        "against": truth,
        "agreement": {name: compared(each, found[truth], total) for name, each in found.items() if name != truth},
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
                f"{value:14s} {part:9s} {name:13s} against {found['against']:11s} Spearman {rho:.2f} [{low:.2f}, "
                f"{high:.2f}]  Kendall {tau:.2f}  top 3 {top} of 3  sum {row['sum_over_total']:.2f} of v(N) − v(∅)"
            )


if __name__ == "__main__":
    main()
