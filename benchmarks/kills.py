"""Kill runs anywhere and resume them: does each end with the record of a run that nobody killed?

    python -m benchmarks.kills [--lines 160] [--moments 40] [--real 30] [--seed 0]

A process is forked for each run, and killed with SIGKILL
    at a line       of `record/` or `study/`, in its first, a middle or its last pass (`--lines` of them);
    in a write      by the system itself, when a file has so many bytes (every kind of file of a record);
    at a moment     drawn at random (`--moments`), the stand-in engine taking a millisecond a tile;
    while resuming  at another line, after a first kill in the middle.
With `--real`, the command `run` on a tiny Llama (4-bit, with the cache of packed weights, and with `--change`) is
killed so often, too: `kills_real.py` says where. After each kill the folder must open (or hold no run yet), the
resuming call may score no tile that is on disk, and what is there at the end must be, byte for byte, what an
uninterrupted run leaves, without any file beside it. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lowmem_layers
from benchmarks.stand_in import StandIn
from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import RecordError

PACKAGE = str(Path(lowmem_layers.__file__).parent)
PACKED_FILE = os.path.join(PACKAGE, "model", "homes", "packed_file.py")
ROOMS = (*(os.path.join(PACKAGE, room) for room in ("record", "study")), PACKED_FILE)
SPEC = StudySpec(tasks=("made_up",), max_removed=2)
Line = tuple[str, int]  # file and line number
Action = Callable[[], None]


@dataclass(frozen=True)
class Point:
    """Where a process dies: at a pass of a line, or when `file` (its name begins so) has `n_bytes`."""

    line: Line | None = None
    passes: int = 1
    file: str = ""
    n_bytes: int = 0

    @property
    def words(self) -> str:
        """Name the point."""
        if self.line is None:
            return f"{self.file} at {self.n_bytes} bytes"
        return f"{Path(self.line[0]).name}:{self.line[1]} pass {self.passes}"


def forked(action: Action, point: Point | float | None = None) -> int:
    """Run an action in a process of its own; give its exit status, or minus the signal that killed it.

    It is killed at `point`: a point that it comes to by itself, or so many seconds after its start.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if isinstance(point, Point):
                sys.settrace(tracer(point))
            action()
            status = 0
        except BaseException:  # noqa: BLE001 (told on stderr, and by the status)
            traceback.print_exc()
        finally:
            os._exit(status)
    if isinstance(point, float):
        time.sleep(point)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tracer(point: Point) -> Callable[[FrameType, str, Any], Any]:
    """Make a trace function that kills this process at a point."""
    left = point.passes

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == point.line:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def called(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOMS):
            return None
        if frame.f_code.co_name == "write_whole" and point.file:
            if frame.f_locals["path"].name.startswith(point.file):
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it otherwise
                resource.setrlimit(resource.RLIMIT_FSIZE, (point.n_bytes, resource.RLIM_INFINITY))
            return None
        return local if point.line is not None and frame.f_code.co_filename == point.line[0] else None

    return called


def passed_lines(action: Action) -> Counter[Line]:
    """Count how often each line of the rooms is passed; the action runs in this process."""
    counts: Counter[Line] = Counter()

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            counts[frame.f_code.co_filename, frame.f_lineno] += 1
        return local

    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename.startswith(ROOMS) else None)
    try:
        action()
    finally:
        sys.settrace(None)
    return counts


def digests(folder: Path) -> dict[str, str]:
    """Hash every file under a folder; of run.json only its name, since it holds times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): "" if path.name == "run.json" else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


class Trial:
    """Runs of one study in folders of their own, held against an uninterrupted one."""

    def __init__(self, root: Path, tile_s: float = 0.0) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.tile_s = root, tile_s
        self.whole: dict[str, str] = {}
        self.lines: Counter[Line] = Counter()
        self.lines = passed_lines(self.action(root / "whole"))
        self.whole = digests(root / "whole" / "r")

    def action(self, place: Path) -> Action:
        """Give the call of `run_study` that is killed and made again."""
        place.mkdir(exist_ok=True)
        study = (
            _Slow(n_items=10, tile_items=2, log=place / "log") if self.tile_s else StandIn(10, 3, 2, 2, place / "log")
        )
        return lambda: run_study(SPEC, place / "r", prepare=study.prepare, read=study.tasks) and None

    def killed(self, name: str, *points: Point | float) -> str:
        """Kill a run at each point in turn, then resume it; say what is wrong, or nothing."""
        place = self.root / name
        action = self.action(place)
        n_died = 0
        for point in points:
            status = forked(action, point)
            n_died += status in (-signal.SIGKILL, -signal.SIGXFSZ)
            if status > 0:
                return f"the run failed (exit status {status})"
        there = tiles(place / "r")
        logged = len(log_of(place))

        def opened_and_resumed() -> None:
            open_what_is_left(place / "r")
            action()

        if forked(opened_and_resumed) != 0:
            return "what the kill left cannot be opened, or not be resumed"
        again = [item for item in log_of(place)[logged:] if item in there]
        if again:
            return f"{again} were on disk and scored again"
        if len(log_of(place)) > len(self.whole) - 3 + n_died:  # files but for run.json, items.parquet and .lock
            return f"{len(log_of(place))} tiles were scored after {n_died} kills"
        found = digests(place / "r")
        return (
            "" if found == self.whole else f"the record differs: {sorted(set(found.items()) ^ set(self.whole.items()))}"
        )


class _Slow(StandIn):
    """A stand-in that takes a millisecond a tile, so that moments drawn at random fall anywhere."""

    def score(self, items: Any, coalitions: Any, on_work: Any = None) -> Any:
        """Wait, then score."""
        time.sleep(0.001)
        return super().score(items, coalitions, on_work)


def tiles(folder: Path) -> set[str]:
    """Name the first item of each tile that is on disk."""
    return {f"q{2 * int(path.stem[-5:])}" for path in folder.glob("scores/*.parquet")}


def log_of(place: Path) -> list[str]:
    """List the first items of the tiles that were scored, in order."""
    return [line.split()[1] for line in (place / "log").read_text().splitlines()] if (place / "log").exists() else []


def open_what_is_left(folder: Path) -> None:
    """Open what a killed run left, and read its scores, unless it is no run yet."""
    try:
        run = open_run(folder)
    except RecordError as error:
        if "is not a run folder" not in error.message or (folder / "run.json").exists():
            raise
        return
    run.scores()


def points_in_writes() -> list[Point]:
    """Name the points in the writes of each kind of file of a record: at its beginning, and in the middle."""
    return [
        Point(file=file, n_bytes=n_bytes)
        for file in ("items.parquet", "run.json", "tile-00000", "tile-00003")
        for n_bytes in (0, 1, 500)
    ]


def points_of(lines: Counter[Line], n_points: int, rng: random.Random) -> list[Point]:
    """Choose points: the writes of each kind of file, then lines, evenly spread, in one of their passes."""
    writes = points_in_writes()
    known = sorted(lines)
    step = max(1.0, len(known) / max(1, n_points - len(writes)))
    chosen = [known[int(place * step)] for place in range(min(len(known), max(0, n_points - len(writes))))]
    return [*writes, *(Point(line, rng.choice((1, (lines[line] + 1) // 2, lines[line]))) for line in chosen)][:n_points]


def main() -> None:
    """Kill and resume, and print what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("lines", 160), ("moments", 40), ("real", 30), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    options = parser.parse_args()
    rng, start = random.Random(options.seed), time.monotonic()
    n_kills, wrong = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        # 1) at lines and in writes, then once more while resuming
        for index, point in enumerate(points_of(trial.lines, options.lines, rng)):
            points = [point] if index % 4 else [Point(file="tile-00002", n_bytes=100), point]
            n_kills["at lines and in writes"] += 1
            n_kills["while resuming"] += len(points) - 1
            if said := trial.killed(f"line{index}", *points):
                wrong.append(f"{point.words}: {said}")
        # 2) at moments
        slow = Trial(Path(folder) / "slow", tile_s=0.001)
        for index in range(options.moments):
            moment = rng.uniform(0.0, 0.12)
            n_kills["at random moments"] += 1
            if said := slow.killed(f"moment{index}", moment):
                wrong.append(f"after {moment:.4f} s: {said}")
    not_reached: dict[str, int] = {}
    if options.real:
        from benchmarks.kills_real import kill_commands

        found, more = kill_commands(options.real, rng)
        n_kills.update({name: n for name, n in found.items() if not name.startswith("not reached")})
        not_reached = {name: n for name, n in found.items() if name.startswith("not reached")}
        wrong += more
    for line in wrong:
        print(line)
    seconds = round(time.monotonic() - start, 1)
    print(json.dumps({"kills": n_kills, "wrong": len(wrong), **not_reached, "seconds": seconds}))


if __name__ == "__main__":
    main()
