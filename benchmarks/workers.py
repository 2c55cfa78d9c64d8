"""Several workers with Ray: what handing out costs, whether kills lose anything, how fast two are against one process.

    python -m benchmarks.workers overhead [--tiles 1000] [--workers 8] [--tile-s 1.0]
    python -m benchmarks.workers kills [--kills 50] [--workers 4] [--pause-s 3.0] [--seed 0]
    python -m benchmarks.workers speed [--pairs 2] [--items 120] [--max-removed 2] [--quant 4bit]

overhead: stand-in workers that only wait, as many coalitions as SmolLM2 has; what a tile takes more than it waits.
kills:    workers' processes are killed with SIGKILL at random moments, `--pause-s` apart on average, while they load
          too; the record must be that of one process, byte for byte, and each tile recorded once.
speed:    the command `run` on the embedded model, two workers of one thread each and one process of two, in turns.
The last line is one JSON document. Needs the extra ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stand_in import TASK, StandIn
from lowmem_layers import StudySpec, run_study
from lowmem_layers.study.events import Event, Noted, TileCommitted, TileStarted
from lowmem_layers.workers.hiring import hired

_USUAL_TILE_S = 30.0  # a tile of a real model on a CPU: half a minute
_LAYERS = 30  # SmolLM2's: 60 players, 235 coalitions


@dataclass(frozen=True)
class Waiting(StandIn):
    """A stand-in that waits `tile_s` before it scores a tile."""

    tile_s: float = 0.0

    def score(self, items: Any, coalitions: Any, on_work: Any = None) -> Any:
        """Wait, then score."""
        time.sleep(self.tile_s)
        return super().score(items, coalitions, on_work)


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Let workers wait for every tile; what the run takes beyond that is what handing out and recording cost."""
    study = Waiting(options.tiles, n_layers=_LAYERS, tile_s=options.tile_s)
    begun, ended = [], []

    def hear(event: Event) -> None:
        if isinstance(event, TileStarted):
            begun.append(time.perf_counter())
        elif isinstance(event, TileCommitted):
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, hired(options.workers, prepare=study.prepare) as prepare:
        spec = StudySpec(tasks=(TASK,), threads=1)
        cpu_s = time.process_time()
        run_study(spec, Path(folder) / "r", prepare=prepare, announce=hear)
        cpu_s = time.process_time() - cpu_s
    wall_s, rounds = ended[-1] - begun[0], -(-options.tiles // options.workers)
    each_s = (wall_s - rounds * options.tile_s) * options.workers / options.tiles
    return {
        "tiles": len(ended), "wall_s": round(wall_s, 2), "overhead_ms_a_tile": round(1000 * each_s, 2),
        "share_of_this_tile": round(each_s / options.tile_s, 4),
        "share_of_a_usual_tile": round(each_s / _USUAL_TILE_S, 5),
        "recording_process_ms_a_tile": round(1000 * cpu_s / options.tiles, 2),
    }  # fmt: skip


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill workers at random moments while they score a run; compare its record with that of one process."""
    n_tiles = 8 * options.kills  # of such a length that the kills fall into the first three quarters of the run
    tile_s = options.kills * options.pause_s * options.workers / (0.75 * n_tiles)
    study = Waiting(n_tiles, n_layers=3, tile_s=tile_s)
    spec, rng = StudySpec(tasks=(TASK,), max_removed=2, threads=1), random.Random(options.seed)
    committed: list[int] = []
    noted: list[str] = []
    killed: list[float] = []
    over = threading.Event()

    def hear(event: Event) -> None:
        if isinstance(event, TileCommitted):
            committed.append(event.tile)
        elif isinstance(event, Noted):
            noted.append(event.words)
            print(f"{len(killed)} kills, {len(committed)} tiles: {event.words}", file=sys.stderr)

    def kill() -> None:
        while len(killed) < options.kills and not over.wait(rng.expovariate(1 / options.pause_s)):
            if (workers := processes_of_workers()) and committed:
                rng.choice(workers).kill()
                killed.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        whole = run_study(spec, Path(folder) / "whole", prepare=StandIn(n_tiles).prepare)
        killer, start = threading.Thread(target=kill), time.perf_counter()
        with hired(options.workers, prepare=study.prepare) as prepare:
            killer.start()
            try:
                run = run_study(spec, Path(folder) / "r", prepare=prepare, announce=hear)
            finally:
                over.set()
                killer.join()
        same = digests(run.folder) == digests(whole.folder)
    return {
        "kills": len(killed), "tiles": n_tiles, "tiles_given_again": sum("goes to another" in each for each in noted),
        "each_tile_recorded_once": sorted(committed) == list(range(n_tiles)), "record_is_that_of_one_process": same,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def processes_of_workers() -> list[psutil.Process]:
    """List the processes of Ray that this one started and that hold a worker."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            continue
    return found


def digests(folder: Path) -> dict[str, str]:
    """Hash the record but for run.json, which has times in it."""
    files = sorted([*folder.glob("scores/*"), folder / "items.parquet"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Run with two workers of one thread and with one process of two threads, in turns; compare their rates."""
    common = ["--limit", str(options.items), "--max-removed", str(options.max_removed), "--quant", options.quant]
    ways = {"workers": ["--workers", "2", "--threads", "1"], "process": ["--threads", "2"]}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(options.pairs):
            order = list(ways) if pair % 2 == 0 else list(ways)[::-1]
            found = {way: timed([*common, *ways[way], "--out", f"{folder}/{way}{pair}"]) for way in order}
            for name in ("tiles_a_minute", "busy_rate"):
                found[f"ratio of {name}"] = found["workers"][name] / found["process"][name]
            rows.append(found)
            print(json.dumps(found), flush=True)
    ratios = {name: [row[name] for row in rows] for name in rows[0] if name.startswith("ratio")}
    return {"pairs": rows, **{f"median {name}": statistics.median(each) for name, each in ratios.items()}}


def timed(arguments: list[str]) -> dict[str, Any]:
    """Run the command; give its tiles a minute from the first to the last, and its rate while workers are busy.

    Units: `busy_rate` in multiply-adds a second, added up over workers, each while it had a tile.
    """
    start_up = "from lowmem_layers.cli import main; main()"
    command = [sys.executable, "-c", start_up, "run", *arguments, "--display", "json"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    events = [json.loads(line) for line in lines]
    begun = min(each["time_s"] for each in events if each["event"] == "TileStarted")
    tiles = [each for each in events if each["event"] == "TileCommitted"]
    scoring_s = tiles[-1]["time_s"] - begun
    rates = []
    for worker in {each["worker"] for each in tiles}:
        own = [each for each in tiles if each["worker"] == worker]
        rates.append(sum(each["work"] for each in own) / sum(each["elapsed_s"] for each in own))
    return {
        "tiles": len(tiles), "scoring_s": round(scoring_s, 2), "tiles_a_minute": 60 * len(tiles) / scoring_s,
        "busy_rate": sum(rates), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "kills", "speed"))
    for name, usual in (
        ("tiles", 1000), ("workers", None), ("tile-s", 1.0), ("kills", 50), ("seed", 0), ("pause-s", 3.0), ("pairs", 2),
        ("items", 120), ("max-removed", 2),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(usual) if usual is not None else int, default=usual)
    parser.add_argument("--quant", default="4bit")
    options = parser.parse_args()
    options.workers = options.workers or {"overhead": 8, "kills": 4}.get(options.what)
    result = {"overhead": overhead, "kills": kills, "speed": speed}[options.what](options)
    versions = {"ray": version("ray"), "python": platform.python_version()}
    machine = {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    print(json.dumps({options.what: result, "options": vars(options), "versions": versions, "machine": machine}))


if __name__ == "__main__":
    main()
