"""Judge how a command ended that was given a bad input, for `benchmarks.fuzz`: what it said, took and wrote."""

from __future__ import annotations

import contextlib
import heapq
import io
import os
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil

from lowmem_layers.cli.entry import run_command_line

LONGEST_S, MOST_BYTES = 10, 1 << 30  # of the CPU; by the clock six times as long, for a machine that others share
N_SLOWEST = 3
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset({"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate"})
_HARMLESS = ("/dev/", "/proc/")


class TooSlow(BaseException):
    """An input took too long; no `except Exception` takes it for something else."""


class Judge:
    """Run commands one after the other; keep what each kind's slowest inputs took, and where files were written."""

    def __init__(self, inside: Path) -> None:
        self.inside = str(inside.resolve())
        self.strays: list[str] = []
        self.is_running = False
        self.ended: dict[str, Counter[int]] = defaultdict(Counter)  # exit statuses of each kind
        self.slowest: dict[str, list[tuple[float, float, str]]] = defaultdict(list)  # (clock, CPU, input)
        sys.addaudithook(self._audited)
        signal.signal(signal.SIGALRM, self._too_slow)

    def fault_of(self, kind: str, what: str, words: list[str]) -> str:
        """Run a command; say what is wrong with how it ended, or nothing."""
        written = io.BytesIO()  # to stderr, by its bytes as a terminal gets them
        stdout, stderr = (
            io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace") for stream in (io.BytesIO(), written)
        )
        before = psutil.Process().memory_info().rss
        start, cpu_start = time.monotonic(), time.process_time()
        self.strays = []
        signal.alarm(6 * LONGEST_S)
        try:
            self.is_running = True
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = run_command_line(words)
        except TooSlow as error:
            return f"not done after {6 * LONGEST_S} s, but at {_frames(error)}"
        except BaseException as error:  # noqa: BLE001 (this is what is looked for)
            return f"{type(error).__name__} at {_frames(error, 1)}: {str(error)[:100]}"
        finally:
            self.is_running = False
            signal.alarm(0)
            took_s, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
            text = f"{what[:120]} | {[word[:60] for word in words]!a}"
            (heapq.heappush if len(self.slowest[kind]) < N_SLOWEST else heapq.heappushpop)(
                self.slowest[kind], (took_s, cpu_s, text)
            )
        self.ended[kind][status] += 1
        stderr.flush()
        said = written.getvalue().decode().splitlines()
        n_errors = sum(line.startswith("error:") for line in said)
        if status not in (0, 1, 2) or n_errors != (status != 0):
            return f"exit status {status} with {n_errors} lines of error"
        if self.strays:
            return f"wrote outside: {self.strays[0]}"
        if cpu_s > LONGEST_S:
            return f"took {cpu_s:.0f} s of the CPU"
        grown = psutil.Process().memory_info().rss - before
        return f"{grown >> 20} MiB more" if grown > MOST_BYTES else ""

    def slowest_inputs(self) -> list[str]:
        """Name the slowest inputs of each kind, with their seconds."""
        return [
            f"slowest of {kind}: {took_s:.1f} s, {cpu_s:.1f} s of the CPU: {text}"
            for kind, inputs in self.slowest.items()
            for took_s, cpu_s, text in sorted(inputs, reverse=True)
        ]

    def longest_s(self) -> dict[str, float]:
        """Give each kind's longest time by the clock."""
        return {kind: round(max(inputs)[0], 1) for kind, inputs in self.slowest.items()}

    def _too_slow(self, *_: Any) -> None:
        raise TooSlow

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note files that Python opens for writing, makes, moves or deletes outside the folder of the inputs."""
        if not self.is_running:
            return
        if event == "open":
            is_writing = isinstance(arguments[2], int) and arguments[2] & _WRITING
            paths = [path for path in arguments[:1] if is_writing and not os.path.isdir(path)]  # which would fail
        else:
            paths = arguments[:2] if event in _CHANGES else ()
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                # (Python keeps compiled modules beside them, wherever one is imported for the first time.)
                place = os.path.abspath(os.fsdecode(path))
                if not f"{place}/".startswith((f"{self.inside}/", *_HARMLESS)) and "__pycache__" not in place:
                    self.strays.append(f"{event} {place[-80:]}")


def _frames(error: BaseException, n_frames: int = 4) -> str:
    """Name the innermost places where an error arose."""
    frames = traceback.extract_tb(error.__traceback__)[-n_frames:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
