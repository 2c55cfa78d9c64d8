"""After how many real items are the most important sublayers certain?

    lowmem-layers run --tasks arc_easy,piqa --data-dir FOLDER --until top3 --out RUN
    python -m benchmarks.certify RUN

The run takes its items in a seeded random order, and stops when its own statement holds. This benchmark looks at the
record again after every `--step` items, for other values and statements, as if each of them had been asked for: such a
run would have stopped at the first look, at the end of a tile, at which the statement holds. The number of looks does
not matter, because the evidence holds at any time. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_layers import open_run
from lowmem_layers.findings.run import Run
from lowmem_layers.game.uncertainty.stopping import StopDecision, decide
from lowmem_layers.game.values.table import ValueTable

VALUES = ("loglikelihood", "margin", "probability", "own metric")


def main() -> None:
    """Look at the record and print one line a value and statement, then one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--statements", default="top=1,top=2,top=3")
    parser.add_argument("--step", type=int, default=5, help="items between looks")
    parser.add_argument("--estimator", default="neighbourhood", help="neighbourhood, or ablation, which any run allows")
    options = parser.parse_args()
    run = open_run(options.run)
    taken = items_in_order(run)
    print(f"{len(taken)} of {run.manifest.n_items} items scored, {len(run.manifest.plan.coalitions)} coalitions")
    rows = []
    for value in VALUES:
        tables = run.value_tables(None if value == "own metric" else value)
        for statement in options.statements.split(","):
            rows.append({"value": value, "statement": statement, **first_proof(run, tables, taken, statement, options)})
            print("  ".join(str(entry) for entry in rows[-1].values()), flush=True)
    about = {"items": run.manifest.n_items, "scored": len(taken), "seed": run.manifest.resolved.seed}
    print(json.dumps({"benchmark": "certify", "model": run.manifest.model.id, **about, "rows": rows}))


def items_in_order(run: Run) -> list[tuple[str, str]]:
    """List the scored items (task, id) in the order in which the run took them."""
    table = run.items().to_pydict()
    names = list(dict.fromkeys(zip(table["task"], table["item"], strict=True)))
    return [names[index] for tile in run.manifest.plan.tiles[: n_tiles_done(run)] for index in tile]


def n_tiles_done(run: Run) -> int:
    """Count the tiles from the first on that are complete."""
    done = 0
    for length in np.cumsum([len(tile) for tile in run.manifest.plan.tiles]):
        done += int(length <= run.n_items_done)
    return done


def first_proof(
    run: Run,
    tables: Sequence[ValueTable],
    taken: Sequence[tuple[str, str]],
    statement: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Find the smallest number of items after which the statement holds; None where it never does."""
    start, decision = time.perf_counter(), None
    for n_items in [*range(options.step, len(taken), options.step), len(taken)]:
        names = set(taken[:n_items])
        parts = [part_of(table, names) for table in tables]
        if any(part is None for part in parts):
            continue
        known = [part for part in parts if part is not None]
        decision = decide(known, statement, estimator=options.estimator)
        if decision.holds:
            return {"items": n_items, "share": n_items / run.manifest.n_items, "text": decision.text}
    return {"items": None, "share": None, "text": missing(decision), "seconds": time.perf_counter() - start}


def part_of(table: ValueTable, known: set[tuple[str, str]]) -> ValueTable | None:
    """Take the rows of the known items; None where there are none."""
    rows = [row for row, name in enumerate(table.items or ()) if (table.task, name) in known]
    return table.take_items(np.array(rows)) if rows else None


def missing(decision: StopDecision | None) -> str:
    """Say what was missing at the last look."""
    return "no look" if decision is None else f"{decision.text}: {decision.detail}"


if __name__ == "__main__":
    main()
