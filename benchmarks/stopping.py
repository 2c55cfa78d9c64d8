"""Measure early stopping: how often is a statement wrong if any look may make it, and how many items does it take?

    python -m benchmarks.stopping [--runs 1000] [--items 400]            games with known values
    python -m benchmarks.stopping --single [--runs 2000] [--items 1000]  one comparison without a gap, skewed items
    python -m benchmarks.stopping --record RUN [--runs 200]              a finished run's items as the population
    python -m benchmarks.stopping --record RUN --orders [--runs 200]     a finished run's items, each once, reordered

Items arrive one at a time in random order, and the rule looks after every `--step` of them (it states nothing before
the 30th item of a task). The first statement counts, whichever look it is made at. In the game "tie" the third and the
fourth sublayer have no gap, in a "duel" its two sublayers have none: every statement about their order is wrong. A
width (`ci=`) is wrong if any value is further from the truth than stated. With `--orders`, run k takes the items in the
order in which `run --seed k --until …` would, and is wrong if the whole record says otherwise. The last line is one
JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.record_population import populations
from lowmem_layers.game import ValueTable, single_removals
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import estimate_influence, mean_over_tasks
from lowmem_layers.game.uncertainty.skewness import cautious_t
from lowmem_layers.game.uncertainty.stopping import MIN_CLUSTERS, decide, item_order, log_evidence, parse_statement

EFFECTS = {
    "clear": [0.45, 0.35, 0.30, 0.08, 0.05, 0.03, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "close": [0.45, 0.35, 0.20, 0.15, 0.05, 0.03, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "tie": [0.45, 0.35, 0.15, 0.15, 0.15, 0.15, 0.02, 0.01, 0.0, 0.0, 0.0, 0.0],
    "all tied": [0.05] * 12,
    "duel": [0.3, 0.3],
    "rare duel": [0.03, 0.03],
    "rare": [0.06, 0.06, 0.06, 0.06, 0.004, 0.004, 0.004, 0.004, 0.0, 0.0, 0.0, 0.0],
    "steps": [0.6, 0.35, 0.1],
    "tied steps": [0.6, 0.2, 0.2],
}
ASKED = [  # (game, statement); widths are for accuracies, and twice as wide for log-likelihoods
    *((game, "top=3") for game in ("clear", "close", "tie", "all tied", "rare")),
    *((game, "top=1") for game in ("duel", "rare duel")),
    *((game, "rank") for game in ("steps", "tied steps", "duel")),
    *((game, "ci=0.12") for game in ("clear", "all tied", "rare")),
]
NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "t(3)": lambda rng, size: rng.standard_t(3, size),
    "gamma(0.5)": lambda rng, size: rng.gamma(0.5, 2.0, size) - 1.0,
    "gamma(0.2)": lambda rng, size: rng.gamma(0.2, 5.0, size) - 1.0,
    "log-normal(1)": lambda rng, size: rng.lognormal(0.0, 1.0, size) - np.exp(0.5),
    "log-normal(1.5)": lambda rng, size: rng.lognormal(0.0, 1.5, size) - np.exp(1.125),
    "rare changes": lambda rng, size: (rng.random(size) < 0.03) * 1.0 - (rng.random(size) < 0.03),
    "rare losses": lambda rng, size: (rng.random(size) < 0.02) * 1.0 - 0.02,
}
KINDS = ("accuracy", "log-likelihood", "one skewed")
Draw = Callable[[np.random.Generator], list[ValueTable]]


def draw(game: str, kind: str, n_items: int, rng: np.random.Generator) -> ValueTable:
    """Draw items of a game: accuracies that removals break (or, more rarely, repair), or skewed heavy-tailed drops.

    The true drop of every sublayer is its effect (times 0.7 for accuracies: the share of items answered right).
    """
    effects = np.array(EFFECTS[game])
    if kind == "accuracy":
        right = rng.random((n_items, 1)) < 0.7
        repaired = ~right & (rng.random((n_items, len(effects))) < 0.02)
        broken = right & (rng.random((n_items, len(effects))) < effects + 0.02 * 0.3 / 0.7)
        values = np.concatenate([right, (right & ~broken) | repaired], axis=1).astype(float)
    else:
        skewed = rng.gamma(0.5, 2.0, (n_items, len(effects)))
        if kind == "one skewed":  # the hardest case for a Gaussian rule: skewed against symmetric, the same mean
            skewed[:, 1:] = 1.0
        values = np.concatenate([np.zeros((n_items, 1)), -effects * skewed], axis=1)
        values[:, 1:] += 0.1 * rng.standard_t(4, (n_items, len(effects)))
    coalitions = tuple(single_removals(len(effects)))
    return ValueTable(tuple(f"player.{p}" for p in range(len(effects))), coalitions, values)


def is_wrong(tables: Sequence[ValueTable], statement: str, text: str, truth: np.ndarray) -> bool:
    """Judge what was stated: an order or a top that is not strictly the true one, or a value too far from the truth."""
    asked = parse_statement(statement)
    players = tables[0].players
    if asked.kind == "ci":
        parts = [estimate_influence(t, estimator_weights("neighbourhood", t.coalitions, players)) for t in tables]
        return bool((np.abs(mean_over_tasks(parts).value - truth) > asked.half_width).any())
    named = re.split(" is | are ", text, maxsplit=1)[1].split(" (")[0].split(", ")
    places = [players.index(name) for name in named]
    if asked.kind == "rank":
        return bool((np.diff(truth[places]) >= 0).any())
    outside = [place for place in range(len(players)) if place not in places]
    return bool(truth[places].min() <= truth[outside].max())


def measure(
    drawn: Draw, truth: np.ndarray, statement: str, runs: int, looks: Sequence[int], seed: int = 0
) -> dict[str, object]:
    """Run a game many times, looking again and again and stopping at the first statement.

    `looks` are numbers of items of each task.
    """
    rng = np.random.default_rng(seed)
    wrong, needed = 0, []
    for _ in range(runs):
        tables = drawn(rng)
        for n in looks:
            known = [table.take_items(range(n)) for table in tables]
            decision = decide(known, statement)
            if decision.holds:
                wrong += is_wrong(known, statement, decision.text, truth)
                needed.append(n * len(tables))
                break
    median = float(np.median(needed)) if needed else None
    return {"runs": runs, "stated": len(needed), "wrong": wrong, "wrong_share": wrong / runs, "median_items": median}


def of_games(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every game, kind and statement."""
    rows = []
    looks = range(options.step, options.items + 1, options.step)
    wanted = options.games.split(",") if options.games else list(EFFECTS)
    for game, statement in ASKED:
        if game not in wanted:
            continue
        for kind in options.kinds.split(","):
            if kind == "one skewed" and "duel" not in game:
                continue
            asked = "ci=0.24" if statement.startswith("ci") and kind != "accuracy" else statement
            truth = np.array(EFFECTS[game]) * (0.7 if kind == "accuracy" else 1.0)

            def drawn(rng: np.random.Generator, game: str = game, kind: str = kind) -> list[ValueTable]:
                return [draw(game, kind, options.items, rng)]

            row = measure(drawn, truth, asked, options.runs, looks)
            rows.append({"game": game, "kind": kind, "statement": asked, **row})
            show(rows[-1])
    return rows


def of_nulls(options: argparse.Namespace) -> list[dict[str, object]]:
    """Compare two players without a gap, looking after every item from the 30th on: any order stated is wrong."""
    rows, n = [], np.arange(1, options.items + 1)
    for name, noise in NULLS.items():
        rng, wrong = np.random.default_rng(0), {"skewness corrected": 0, "uncorrected": 0}
        for start in range(0, options.runs, 500):
            gaps = noise(rng, (min(500, options.runs - start), options.items))
            first, second, third = (np.cumsum(gaps**power, axis=1) / n for power in (1, 2, 3))
            variance = np.maximum(second - first**2, 1e-12)
            skewness = (third - 3 * first * second + 2 * first**3) / variance**1.5 / np.sqrt(n)
            t = np.where(variance > 1e-9, first / np.sqrt(variance / np.maximum(n - 1, 1)), 0.0)
            cautious = cautious_t(np.abs(t), np.sign(t) * skewness)
            for kind, each in (("skewness corrected", cautious), ("uncorrected", np.abs(t))):
                evidence = log_evidence(each[:, MIN_CLUSTERS - 1 :], n[MIN_CLUSTERS - 1 :] - 1.0)
                wrong[kind] += int((evidence > np.log(20.0)).any(axis=1).sum())
        rows.append({"items": name, "runs": options.runs} | {k: count / options.runs for k, count in wrong.items()})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def reordered(found: Sequence[ValueTable]) -> Draw:
    """Take the items in the orders of the seeds 0, 1, 2 and so on, one at each call."""
    seeds = itertools.count()

    def draw(_: np.random.Generator) -> list[ValueTable]:
        seed = next(seeds)
        return [table.take_items(item_order(table.cluster_codes.tolist(), seed)) for table in found]

    return draw


def of_record(options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure statements about a finished run's own items, drawn or ordered anew each time."""
    rows = []
    for name, found in populations(options.record).items():
        each = max(options.items // len(found), 30)
        if options.orders:
            each = min(min(table.n_items for table in found), each)

        def drawn(rng: np.random.Generator, found: list[ValueTable] = found, each: int = each) -> list[ValueTable]:
            tables = [table.take_items(rng.integers(0, table.n_items, each)) for table in found]
            return [ValueTable(t.players, t.coalitions, t.values) for t in tables]

        parts = [estimate_influence(t, estimator_weights("neighbourhood", t.coalitions, t.players)) for t in found]
        truth = mean_over_tasks(parts).value
        for statement in options.statements.split(","):
            taken = reordered(found) if options.orders else drawn
            row = measure(taken, truth, statement, options.runs, [*range(options.step, each, options.step), each])
            rows.append({"game": "record", "kind": name, "statement": statement, **row})
            show(rows[-1])
    return rows


def show(row: dict[str, object]) -> None:
    """Print one line."""
    print(
        f"{row['game']:<12}{row['kind']:<16}{row['statement']:<9}{row['runs']:>6} runs{row['stated']:>6} stated"
        f"{row['wrong']:>5} wrong  median {row['median_items']} items",
        flush=True,
    )


def main() -> None:
    """Print the table, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--games", help=f"only these, joined by commas: {', '.join(EFFECTS)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help="only these kinds of values, joined by commas")
    parser.add_argument("--single", action="store_true", help="one comparison without a gap, many item distributions")
    parser.add_argument("--record", type=Path, help="a finished run: its items are the population")
    parser.add_argument("--orders", action="store_true", help="of --record: take each item once, in many orders")
    parser.add_argument("--statements", default="top=1,top=2,top=3", help="of --record")
    options = parser.parse_args()
    if unknown := set((options.games or "duel").split(",")) - set(EFFECTS):
        parser.error(f"no game {sorted(unknown)[0]!r}; there are: {', '.join(EFFECTS)}")
    rows = of_nulls(options) if options.single else of_record(options) if options.record else of_games(options)
    asked = {name: value for name, value in vars(options).items() if name != "record"}
    print(json.dumps({"rows": rows, "options": asked, "numpy": np.__version__, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
