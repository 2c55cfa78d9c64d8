"""What a run would take on several workers: when the last one is done, and what keeps them from scoring meanwhile.

Tiles are dealt out as a run does it: each to the first worker that is free, in the order of the plan.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.forecast.machine import Machine
from lowmem_layers.forecast.memory import Memory
from lowmem_layers.forecast.work import WorkForecast

START_S = 20.0  # Ray, a worker's process, its imports of torch and transformers: 15 to 25 s on a CPU of two cores
COMMIT_S = 0.02  # in which the recording process looks at a tile's scores and writes them (benchmarks.workers)
_PASSES = 4  # of an examination over the weights
_CHECKED_BYTES_S = 1e9  # checksums of packed weights, each worker on a core of its own


@dataclass(frozen=True)
class WorkersForecast:
    """A run on several workers before it is run.

    Units: seconds. `alone_s` is what one such worker takes for everything, `wall_s` what all of them do. Of this every
    worker spends `loading_s` until its model is there; `scoring_s`, `waiting_s` (for the process that records) and
    `idle_s` (when no tile is left) are sums over all workers. `read_bytes_s` is the speed at which all together read.
    """

    n_workers: int
    n_tiles: int
    alone_s: float
    wall_s: float
    loading_s: float
    scoring_s: float
    waiting_s: float
    idle_s: float
    read_bytes_s: float

    @property
    def efficiency(self) -> float:
        """Give the share of the workers' time in which they score."""
        return self.scoring_s / (self.n_workers * self.wall_s)

    @property
    def losses(self) -> tuple[tuple[str, float], ...]:
        """Say what the rest of the workers' time goes to: cause and share, the largest first."""
        parts = {
            "starting and loading the model": self.n_workers * self.loading_s,
            "no tile is left while the last ones are scored": self.idle_s,
            "waiting for the one process that records": self.waiting_s,
        }
        shares = [(cause, spent / (self.n_workers * self.wall_s)) for cause, spent in parts.items()]
        return tuple(sorted(shares, key=lambda each: -each[1]))


def forecast_workers(
    n_workers: int, work: WorkForecast, memory: Memory, machine: Machine, weights_bytes: int
) -> WorkersForecast:
    """Foretell a run on workers that are all like this machine, whose packed weights lie in one cache that all read.

    A tile takes its share of the work; it brings the weights in and unpacks them once, whatever its size.

    Units: `weights_bytes` that a worker reads, packed before: the decoder layers', embedding and head.
    """
    # 1) loading: everybody reads the same file, at its one speed; then checks sums and examines the model
    unpacking_s, streaming_s = (each / max(1, memory.n_tiles) for each in (work.unpacking_s, work.streaming_s))
    own_s = weights_bytes / _CHECKED_BYTES_S + _PASSES * max(unpacking_s, streaming_s)

    def loading(n_readers: int) -> float:
        return START_S + n_readers * weights_bytes / machine.disk_bytes_s + own_s

    # 2) tiles: weights stream while states are computed, so that the longer of the two counts
    computing_s = work.compute_s + work.elementwise_s
    tiles = [max(share * computing_s + unpacking_s, streaming_s) for share in memory.tile_shares]
    alone_s = loading(1) + dealt_out(tiles, 1)[0]
    scored_s, waiting_s, idle_s = dealt_out(tiles, n_workers)
    loading_s = loading(n_workers)
    return WorkersForecast(
        n_workers, len(tiles), alone_s, loading_s + scored_s, loading_s, sum(tiles), waiting_s, idle_s,
        machine.disk_bytes_s,
    )  # fmt: skip


def dealt_out(tiles_s: Sequence[float], n_workers: int, commit_s: float = COMMIT_S) -> tuple[float, float, float]:
    """Deal tiles out, each to the first worker that is free; one process records them, one at a time.

    A worker that is done gets another tile as soon as that process is free, before its scores are written.

    Units: seconds; returns the time until all is written, and the sums of what workers wait for the recording process
    and of what they are idle when no tile is left.
    """
    # 1) everybody gets a first tile, while there are any
    rest = deque(tiles_s)
    busy = [rest.popleft() for _ in range(min(n_workers, len(rest)))]  # when each worker is done with what it has
    heapq.heapify(busy)
    ended = [0.0] * (n_workers - len(busy))
    # 2) whoever is done first is seen first
    recorded = waiting_s = 0.0  # until when the recording process is busy
    while busy:
        done = heapq.heappop(busy)
        seen = max(done, recorded)
        if rest:
            waiting_s += seen - done
            heapq.heappush(busy, seen + rest.popleft())
        else:
            ended.append(done)
        recorded = seen + commit_s
    return recorded, waiting_s, sum(recorded - each for each in ended)
