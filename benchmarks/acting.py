"""What acting on a run really costs: held-out losses of pruned models, by the record, at random and by block influence.

    python -m benchmarks.acting RUN [--remove 1 2 4 8] [--value loglikelihood]

For each number of sublayers the choice is made on one half of the run's items and measured on the other, all in one
sweep. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse

from lowmem_layers import open_run
from lowmem_layers.acting.choosing import Request, choose, expected_loss, half_tables
from lowmem_layers.acting.proxies import block_influence_version, measure_proxies, trust_lines
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.acting.versions import (
    Version,
    checked_items,
    measure_versions,
    prepare_again,
    random_version,
    version_table,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--remove", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--value", default="loglikelihood")
    asked = parser.parse_args()
    run = open_run(asked.run)
    prepared = prepare_again(run, print)
    # 1) what goes, by each way to choose
    seen = {(table.task, item) for table in half_tables(run, asked.value, held_out=False) for item in table.items or ()}
    chosen_by = [item for item in checked_items(run, prepared) if (item.task, item.id) in seen]
    versions = [Version("full", ((),))]
    for n_removed in asked.remove:
        choice = choose(run, Request(remove=n_removed), FORMS["zeroed"], asked.value)
        found = {
            "record": Version("", (choice.removed,)),
            "block influence": block_influence_version(prepared, chosen_by, choice.units, n_removed),
            "random": random_version(choice.units, n_removed, seed=n_removed),
        }
        versions += [Version(f"{n_removed} by {way}", each.removals) for way, each in found.items()]
    # 2) all of them on the items that were held out
    tables = measure_versions(run, prepared, versions, asked.value, lambda done, n: print(f"tile {done} of {n}"))
    foreseen = [expected_loss(run, version.removals, asked.value) for version in versions]
    print("| removed | foreseen loss | held-out loss | what |\n| --- | --- | --- | --- |")
    for row in version_table(tables, versions, foreseen).to_pylist():
        if row["task"] == (run.tasks[0] if len(run.tasks) == 1 else "all") and row["version"] != "full":
            loss = f"{row['loss']:.2f} [{row['loss_ci_low']:.2f}, {row['loss_ci_high']:.2f}]"
            what = row["removed"].replace("+", " ") or "five draws"
            print(f"| {row['version']} | {row['foreseen']:.2f} | {loss} | {what} |")
    # 3) how far a proxy's ranking is the measured one
    for line in trust_lines(measure_proxies(run, asked.value, lambda _: None, prepare=lambda *_: prepared)):
        print(line)


if __name__ == "__main__":
    main()
