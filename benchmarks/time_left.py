"""Is the time left that the display tells right? What it said against what was true, on a real run.

    python -m benchmarks.time_left --limit 50 --max-removed 2

The run's clock is the processor time of this process, of one thread: on a machine that others use as well, the wall
clock would tell how busy they were, and not whether the estimate counts the work rightly.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from lowmem_layers import StudySpec, run_study
from lowmem_layers.cli.display.progress import Progress, advance
from lowmem_layers.study.events import Event, RunFinished

_APART_S = 1.0


class Oracle:
    """Note every second what the display would say, and when the run was over."""

    def __init__(self) -> None:
        self._at = Progress(started=time.process_time())
        self.told: list[tuple[float, float, float]] = []  # (processor time, share done, seconds left)
        self.ended = 0.0

    def __call__(self, event: Event) -> None:
        now = time.process_time()
        self._at = advance(self._at, event, now)
        left = self._at.left_s(now)
        if isinstance(event, RunFinished):
            self.ended = now
        elif left is not None and (not self.told or now - self.told[-1][0] >= _APART_S):
            self.told.append((now, self._at.fraction, left))


def main() -> None:
    """Run, and print the largest error from each tenth on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", default="quick")
    parser.add_argument("--data-dir", default=os.environ.get("LOWMEM_LAYERS_DATA"))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--max-removed", type=int, default=2)
    options = parser.parse_args()
    tasks = tuple(options.tasks.split(","))
    spec = StudySpec(
        tasks=tasks,
        data_dir=None if tasks == ("quick",) else options.data_dir,
        limit=options.limit,
        max_removed=options.max_removed,
        threads=1,
    )
    oracle = Oracle()
    with tempfile.TemporaryDirectory(prefix="lowmem-layers-") as folder:
        run_study(spec, Path(folder) / "run", announce=oracle)
    rows = []
    for tenth in range(1, 10):
        told = [each for each in oracle.told if tenth / 10 <= each[1] < (tenth + 1) / 10]
        truth = [(left, oracle.ended - now) for now, _, left in told if oracle.ended > now]  # seconds
        if truth:
            left, true = max(truth, key=lambda each: abs(each[0] / each[1] - 1))
            error = round(left / true - 1, 3)
            rows.append({"tenth": tenth, "estimates": len(truth), "worst_error": error, "of_s": round(true, 2)})
            print(f"from {tenth}0 % on: {len(truth):3} estimates, the worst off by {error:+.0%} of {true:.1f} s")
    print(
        json.dumps({"tasks": options.tasks, "limit": options.limit, "max_removed": options.max_removed, "rows": rows})
    )


if __name__ == "__main__":
    main()
