"""The second half of `benchmarks.kills`: the command `run`, with a real engine on a tiny Llama, killed anywhere.

Three commands of eight tiles each: sublayers removed from NF4 weights that are packed, kept and read again;
`--change mean`; and `--change quantise:nf4`. torch is imported once, and a process is forked for each run, with a
folder and a cache of its own, where a file of an earlier, killed process lies as well. Kills come in the writes of
every kind of file, at lines that an uninterrupted run passes (all of those that write the cache, others of `record/`
and `study/`), at random moments, and, every fourth, once more while resuming. Only what died counts as a kill: where a
run ended before its moment, or did not pass the line this time, that is said, and another follows. The page, which
would take most of the time, is made of nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.kills import PACKED_FILE, Line, Point, digests, forked, passed_lines, points_in_writes

N_ITEMS, N_LINES = 8, 24
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'
COMMANDS = {
    "removed, 4-bit, cache": ("--quant", "4bit"),
    "change mean": ("--change", "mean", "--no-cache"),
    "change quantise": ("--change", "quantise:nf4", "--no-cache"),
}
_KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
_NO_PROCESS = 2**22 + 1  # more than the highest number of a process on Linux


class RealTrial:
    """Runs of one command in folders of their own, held against an uninterrupted one."""

    def __init__(self, name: str) -> None:
        self.name, self.options = name, COMMANDS[name]
        self.place = Path(name.replace(" ", "-").replace(",", ""))
        self.place.mkdir()
        self.partial: str | None = None
        self.run(self.place / "once")  # in this process, so that everything is imported when it forks
        start = time.monotonic()
        if forked(lambda: self.run(self.place / "whole")):
            raise SystemExit(f"the uninterrupted command failed: {name}")
        self.whole, self.length_s = record(self.place / "whole"), time.monotonic() - start
        if len(self.whole) != N_ITEMS + 3:
            raise SystemExit(f"{len(self.whole)} files of an uninterrupted run: not a tile an item")
        kept = [path for path in (self.place / "whole-cache").rglob("*") if path.suffix == ".packed"]
        if kept:
            self.partial = str(kept[0].relative_to(self.place / "whole-cache")) + f".{_NO_PROCESS}.partial"
        self.lines = self._lines()

    def run(self, folder: Path) -> None:
        """Run the command in this process.

        Raises:
            SystemExit: it failed.
        """
        from lowmem_layers.cli.entry import run_command_line

        cache = folder.with_name(folder.name + "-cache")
        os.environ["LOWMEM_LAYERS_CACHE"] = str(cache)
        if self.partial is not None and not cache.exists():
            old = cache / self.partial
            old.parent.mkdir(parents=True)
            old.write_bytes(b"abandoned")
            os.utime(old, (0, 0))
        usual = ["--model", "model", "--tasks", "task.toml", "--max-removed", "1", "--threads", "1", "--device", "cpu"]
        with contextlib.redirect_stdout(io.StringIO()):
            status = run_command_line(["run", *usual, "--display", "none", "--out", str(folder), *self.options])
        if status:
            raise SystemExit(status)

    def _lines(self) -> Counter[Line]:
        """Count how often an uninterrupted run passes each line, in a process of its own."""
        found = self.place / "lines.json"

        def counted() -> None:
            counts = passed_lines(lambda: self.run(self.place / "counted"))
            found.write_text(json.dumps([[file, line, n] for (file, line), n in counts.items()]))

        if forked(counted):
            raise SystemExit(f"the traced command failed: {self.name}")
        return Counter({(file, line): n for file, line, n in json.loads(found.read_text())})

    def points(self, rng: random.Random) -> list[Point]:
        """Name the points: in writes, at each line that writes the cache, and at other lines, evenly spread."""
        cache = sorted(line for line in self.lines if line[0] == PACKED_FILE)
        others = sorted(line for line in self.lines if line[0] != PACKED_FILE)
        lines = [*cache, *(others[int(place * len(others) / N_LINES)] for place in range(N_LINES))]
        found = [*points_in_writes(), *(Point(line, rng.choice((1, self.lines[line]))) for line in lines)]
        rng.shuffle(found)
        return found

    def killed(self, name: str, *points: Point | float) -> tuple[int, str, str]:
        """Kill a run at each point in turn, then resume it; give the deaths, why one did not die, and what is wrong."""
        folder = self.place / name
        n_died, missed, words = 0, "", ", then ".join(map(words_of, points))
        for point in points:
            status = forked(lambda: self.run(folder), point)
            n_died += status in _KILLED
            if status == 0:
                missed = "ended before that moment" if isinstance(point, float) else "did not pass there"
            elif status not in _KILLED:
                return n_died, "", f"{self.name}: not killed {words}, but ended with {status}"
        before = {path: path.stat().st_mtime_ns for path in folder.glob("scores/*.parquet")}
        if forked(lambda: self.run(folder)):
            return n_died, missed, f"{self.name}: killed {words}, it does not go on"
        if record(folder) != self.whole:
            return n_died, missed, f"{self.name}: killed {words}, it has another record"
        if again := [path.name for path, moment in before.items() if path.stat().st_mtime_ns != moment]:
            return n_died, missed, f"{self.name}: killed {words}, it scored {again} again"
        if left := [p.name for p in folder.with_name(f"{name}-cache").rglob("*.partial") if p.stat().st_mtime == 0]:
            return n_died, missed, f"{self.name}: killed {words}, it left {left}"
        return n_died, missed, ""


def words_of(point: Point | float) -> str:
    """Say where a kill is."""
    return f"at {point.words}" if isinstance(point, Point) else f"after {point:.2f} s"


def record(folder: Path) -> dict[str, str]:
    """Hash the files of a run but for its page."""
    return {path: digest for path, digest in digests(folder).items() if not path.startswith("report")}


def kinds_of_kills(trial: RealTrial, rng: random.Random) -> Iterator[list[Point | float]]:
    """Give points without end: named ones and moments by turns, then moments; every fourth time two."""
    named = trial.points(rng)
    turn = 0
    while True:
        turn += 1
        moment = rng.uniform(0.0, 0.9 * trial.length_s)
        first: Point | float = named.pop() if named and turn % 3 else moment
        yield [rng.uniform(0.2, 0.7) * trial.length_s, first] if turn % 4 == 0 else [first]


def kill_commands(n_kills: int, rng: random.Random) -> tuple[dict[str, int], list[str]]:
    """Kill and resume the commands until so many processes died; count them, and say what went wrong."""
    from lowmem_layers import report
    from lowmem_layers.cli import summary
    from lowmem_layers.engine import engine
    from lowmem_layers.model import load  # noqa: F401 (imported once, before the forks)
    from tests.model.conftest import save_model

    report.write_report = lambda *_, **__: Path("page")
    summary.summarise = lambda *_, **__: None
    engine.tile_work_for = lambda *_, **__: 1  # a tile an item, however small the model is
    n_died, missed, wrong, start = Counter[str](), Counter[str](), [], time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        save_model(Path("model"), "llama")
        items = [{"q": f"the {n}", "options": [" one", " two"], "answer": n % 2} for n in range(N_ITEMS)]
        Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        Path("task.toml").write_text(TASK)
        streams = [(trial, kinds_of_kills(trial, rng)) for trial in map(RealTrial, COMMANDS)]
        index = 0
        while n_died.total() < n_kills and index < 3 * n_kills:
            trial, points = streams[index % len(streams)]
            died, why, said = trial.killed(f"r{index}", *(at := next(points)))
            n_died[f"the command, {trial.name}"] += died
            if why:
                missed[f"not reached: {why}"] += 1
                print(f"{trial.name} {' '.join(map(words_of, at))}: not reached, it {why}", flush=True)
            wrong += [said] if said else []
            index += 1
            if index % 20 == 0:
                print(f"{n_died.total()} kills, {len(wrong)} wrong, {time.monotonic() - start:.0f} s", flush=True)
        os.chdir("/")
    return {**n_died, **missed}, wrong
