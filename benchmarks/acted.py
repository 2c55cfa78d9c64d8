"""A model from its runs to what pruning and mixing formats cost on held-out items, with one load and one examination.

    python -m benchmarks.acted measure OUT [--model M] [--task quick] [--items 60] [--remove 2 4 8]
        [--formats q2_k q4_0 q8_0] [--budget 4.5 5.5]
    python -m benchmarks.acted draw OUT [OUT…]

`measure` makes a run without sublayers (windows of up to two) and one for each format (single sublayers), chooses on
one half of the items and measures on the other, beside the same number or the same bits at random and by block
influence. Everything is in OUT: the runs, and `acted.json`. The runs are those of `lowmem-layers run` with the same
options; a second call goes on with them. `draw` makes benchmarks/figures/acted.png of one or more models.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.acted_figure import draw
from lowmem_layers import StudySpec, run_study
from lowmem_layers.acting.allotting import check_runs, measured
from lowmem_layers.acting.choosing import Request, choose, expected_loss, is_held_out
from lowmem_layers.acting.mixtures import bits_in, contenders, measure_contenders, numbers_of, own_bits
from lowmem_layers.acting.proxies import block_influence_version
from lowmem_layers.acting.prune import FORMS
from lowmem_layers.acting.versions import Version, measure_versions, random_version, version_table
from lowmem_layers.engine import Engine
from lowmem_layers.engine.changes import Changes
from lowmem_layers.findings.run import Run
from lowmem_layers.model.change import parse_change
from lowmem_layers.model.homes.rounding import Shelf
from lowmem_layers.model.load import inspect_model
from lowmem_layers.study.contracts import Announce, Prepared
from lowmem_layers.study.events import StageStarted
from lowmem_layers.study.prepare import model_spec, prepare_study

VALUE = "loglikelihood"
_SHELF_BYTES = 2 << 30


class OneModel:
    """Prepare study after study with the model that was loaded and examined for the first."""

    def __init__(self) -> None:
        self._first: Prepared | None = None
        self._shelf = Shelf(_SHELF_BYTES)

    def prepare(self, spec: Any, announce: Announce, earlier: Any = None) -> Prepared:
        """Prepare a study as `run_study` asks for it."""
        if self._first is None:
            self._first = prepare_study(replace(spec, change="remove"), announce, earlier)
        changes = Changes.alike(len(self._first.players), parse_change(spec.change), shelf=self._shelf)
        engine = self._first.engine
        assert isinstance(engine, Engine)  # what `prepare_study` makes without workers
        return replace(self._first, engine=engine.changed(changes))


def measure(asked: argparse.Namespace) -> None:
    """Make the runs, choose, measure, and write the results."""
    out, model = Path(asked.out), OneModel()
    base = StudySpec(
        model=asked.model, dtype="float32", tasks=(asked.task,), data_dir=asked.data_dir, limit=asked.items, threads=1
    )

    def made(name: str, change: str, max_removed: int) -> Run:
        spec = replace(base, change=change, max_removed=max_removed)
        tell = lambda event: print(name, event.stage, flush=True) if isinstance(event, StageStarted) else None  # noqa: E731
        return run_study(spec, out / name, prepare=model.prepare, announce=tell)

    removals = made("remove", "remove", 2)
    runs = [made(name, f"quantise:{name}", 1) for name in asked.formats]
    rows = pruned(removals, model.prepare(removals.manifest.resolved, print), asked.remove)
    rows += mixed(runs, model, asked.budget)
    name = Path(removals.manifest.resolved.model).stem
    about = {"model": name, "task": asked.task, "items": asked.items, "rows": rows}
    (out / "acted.json").write_text(json.dumps(about, indent=1))
    print(f"{name}, {asked.items} items of {asked.task}, loss in nats on {rows[0]['n_items']} held-out items")
    for row in rows:
        ci = f"[{row['loss_ci_low']:.2f}, {row['loss_ci_high']:.2f}]"
        print(f"| {row['what']} | {row['way']} | {row['foreseen']:.2f} | {row['loss']:.2f} {ci} |".replace("-", "−"))


def pruned(run: Run, prepared: Prepared, counts: list[int]) -> list[dict[str, Any]]:
    """Measure removals of so many sublayers, by the record, by block influence and at random."""
    seen = [item for item in prepared.encoded if not is_held_out(item.task, item.cluster)]
    versions, about = [], []
    for count in counts:
        choice = choose(run, Request(remove=count), FORMS["zeroed"], VALUE)
        by_proxy = block_influence_version(prepared, seen, choice.units, count)
        ways = {
            "record": Version("", (choice.removed,)),
            "block influence": by_proxy,
            "random": random_version(choice.units, count, seed=count),
        }
        versions += ways.values()
        about += [{"kind": "removed", "x": count, "what": f"{count} removed", "way": way} for way in ways]
    tables = measure_versions(run, prepared, versions, VALUE)
    foreseen = [expected_loss(run, version.removals, VALUE) for version in versions]
    found = version_table(tables, versions, foreseen).to_pylist()
    return [{**one, **row} for one, row in zip(about, found, strict=True)]


def mixed(runs: list[Run], model: OneModel, budgets: list[float]) -> list[dict[str, Any]]:
    """Measure mixtures under budgets, by the record, by block influence and at random, and uniform formats."""
    found = inspect_model(model_spec(runs[0].manifest.resolved))
    known = measured(runs, VALUE, own_bits(found, check_runs(runs)), bits_in(found))
    numbers, prepared = numbers_of(found), model.prepare(runs[0].manifest.resolved, print)
    of, about = [], []
    for place, budget in enumerate(budgets):
        chosen = known.choose(numbers, budget)
        for each in contenders(known, chosen, numbers, budget, prepared, seed=0, say=print):
            if each.name.startswith("all ") and place:
                continue
            way = "record" if each.name == "chosen" else each.name.partition(" (")[0]
            of.append(each)
            about.append({"kind": "mixed", "x": each.bits, "what": f"{each.bits:.2f} bits", "way": way})
    table = measure_contenders(known, prepared, of, VALUE, print).to_pylist()
    return [{**one, **row} for one, row in zip(about, table, strict=True)]


def main() -> None:
    """Measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "draw"))
    parser.add_argument("out", nargs="+")
    parser.add_argument("--model", default=None)
    parser.add_argument("--task", default="quick")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--remove", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--formats", nargs="+", default=["q2_k", "q4_0", "q8_0"])
    parser.add_argument("--budget", type=float, nargs="+", default=[4.5, 5.5])
    asked = parser.parse_args()
    if asked.what == "draw":
        draw([json.loads((Path(out) / "acted.json").read_text()) for out in asked.out], Path("benchmarks/figures"))
        return
    (asked.out,) = asked.out
    measure(asked)


if __name__ == "__main__":
    main()
