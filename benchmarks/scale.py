"""Measure what a study of very many tiles costs beside the engine, and what reading a very large run takes.

    python -m benchmarks.scale [--tiles 50000] [--until] [--large] [--items 10000]

1. A study of `--tiles` tiles of one item each (3 decoder layers, windows of one, 7 coalitions) with a stand-in engine
   that takes no time: milliseconds a tile and resident memory over the run, which should not rise. With `--until` a
   statement is decided about all the way that never becomes certain. The run is interrupted after nine tenths and
   resumed; then it is opened. Each step runs in a process of its own. `before_scoring_cpu_s` is the CPU's time from the
   call to the first tile that is scored, less what the stand-in takes to make up its items (imports are over by then).
2. With `--large`: a run of 160 sublayers, windows of up to four (635 coalitions) and `--items` items, tiles of 500,
   written once; then `importance`, `compare` with itself, and `report`, each as a command: seconds and peak memory.

The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # noqa: F401 (pyarrow imports it once a process where it is installed)
import psutil

from benchmarks.stand_in import StandIn
from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.record.manifest import EngineRecord
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepare, Prepared
from lowmem_layers.study.events import Announce, TileCommitted, TileStarted

MIB = 1 << 20


def in_a_process(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run an action in a forked process; give what it found, its seconds and its peak memory."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        start = time.monotonic()
        found = action()
        found["seconds"] = round(time.monotonic() - start, 2)
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said)


class Watch:
    """Take the time and the memory of each tile; interrupt the run after a number of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.start, self.stop_after = time.monotonic(), stop_after
        self.first_s: float | None = None
        self.cpu_s, self.preparing_cpu_s, self.first_cpu_s = time.process_time(), 0.0, 0.0
        self.at: list[tuple[float, int]] = []

    def __call__(self, event: object) -> None:
        """Note when a tile is committed, and when the first one could be scored."""
        if isinstance(event, TileStarted) and self.first_s is None:
            self.first_s = time.monotonic() - self.start
            self.first_cpu_s = time.process_time() - self.cpu_s - self.preparing_cpu_s
        if isinstance(event, TileCommitted):
            self.at.append((time.monotonic(), psutil.Process().memory_info().rss))
            if len(self.at) == self.stop_after:
                raise KeyboardInterrupt

    def timed(self, prepare: Prepare) -> Prepare:
        """Take the CPU's time of what stands in for loading a model and encoding items."""

        def prepared(specification: Specification, announce: Announce, earlier: EngineRecord | None) -> Prepared:
            start = time.process_time()
            made = prepare(specification, announce, earlier)
            self.preparing_cpu_s = time.process_time() - start
            return made

        return prepared

    def found(self) -> dict[str, Any]:
        """Say what a tile took: the medians of the first and of the last tenth, and the memory at both ends."""
        times = np.diff([moment for moment, _ in self.at]) * 1e3
        tenth = max(1, len(times) // 10)
        return {
            "before_scoring_s": round(self.first_s or 0.0, 2),
            "before_scoring_cpu_s": round(self.first_cpu_s, 2),
            "tiles": len(self.at),
            "ms_a_tile": [round(float(np.median(part)), 3) for part in (times[:tenth], times[-tenth:])],
            "mean_ms_a_tile": [round(float(np.mean(part)), 3) for part in (times[:tenth], times[-tenth:])],
            "resident_mib": [self.at[tenth][1] // MIB, self.at[-1][1] // MIB],
        }


def many_tiles(folder: Path, n_tiles: int, until: bool) -> dict[str, Any]:
    """Measure a study of many tiles: begun, resumed, opened."""
    spec = StudySpec(tasks=("made_up",), max_removed=1, until="ci=0.000001" if until else None, value="loglikelihood")
    study = StandIn(n_tiles)

    def measured(stop_after: int | None) -> dict[str, Any]:
        watch = Watch(stop_after)
        with contextlib.suppress(KeyboardInterrupt):
            run_study(spec, folder, prepare=watch.timed(study.prepare), announce=watch)
        return watch.found()

    def opened() -> dict[str, Any]:
        start = time.process_time()
        run = open_run(folder)
        items, opening_s = run.n_items_done, time.process_time() - start
        run.importance("loglikelihood")
        return {"items": items, "opening_cpu_s": round(opening_s, 2), "cpu_s": round(time.process_time() - start, 2)}

    return {
        "begun": in_a_process(lambda: measured(n_tiles * 9 // 10)),
        "resumed": in_a_process(lambda: measured(None)),
        "opened, importance": in_a_process(opened),
    }


def large_run(folder: Path, n_items: int) -> dict[str, Any]:
    """Measure the commands that read a run of 160 sublayers, 635 coalitions and many items."""
    study = StandIn(n_items, n_layers=80, tile_items=500)
    spec = StudySpec(tasks=("made_up",), max_removed=4, value="loglikelihood")

    def written() -> dict[str, Any]:
        return {"coalitions": len(run_study(spec, folder, prepare=study.prepare).manifest.plan.coalitions)}

    def command(*words: str) -> Callable[[], dict[str, Any]]:
        def action() -> dict[str, Any]:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return {"status": run_command_line([*words])}

        return action

    run = str(folder)
    return {
        "written": in_a_process(written),
        "importance": in_a_process(command("importance", run)),
        "compare": in_a_process(command("compare", run, run, "--value", "loglikelihood")),
        "report": in_a_process(command("report", run)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=50_000)
    parser.add_argument("--until", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--items", type=int, default=10_000)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.tiles:
            found["many tiles"] = many_tiles(Path(folder) / "many", options.tiles, options.until)
            print(json.dumps(found), flush=True)
        if options.large:
            found["large run"] = large_run(Path(folder) / "large", options.items)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
