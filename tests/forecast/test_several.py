"""What several workers are foretold to take is what the loop that hands tiles out makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_layers.forecast.machine import named_card
from lowmem_layers.forecast.memory import Memory
from lowmem_layers.forecast.several import START_S, dealt_out, forecast_workers
from lowmem_layers.forecast.work import WorkForecast
from lowmem_layers.study.contracts import Scoring
from lowmem_layers.study.events import ignore
from lowmem_layers.workers.handing import Handing
from lowmem_layers.workers.worker import Scored


@dataclass
class TimedHands:
    """Workers that only take time, by a clock that moves when somebody waits."""

    n_workers: int
    tiles_s: Sequence[float]
    now: float = 0.0
    ends: dict[int, float] = field(default_factory=dict)

    def call(self, worker: int, method: str, *arguments: Any) -> int:
        assert method == "score", method
        self.ends[len(self.ends)] = self.now + self.tiles_s[arguments[0]]
        return len(self.ends) - 1

    def share(self, value: Any) -> Any:
        return value

    def wait(self, handles: Sequence[int], timeout_s: float) -> list[int]:
        first = min(handles, key=lambda handle: self.ends[handle])
        self.now = max(self.now, self.ends[first])
        return [first]

    def answer(self, handle: int) -> Scored:
        return Scored([])

    def restart(self, worker: int) -> None: ...


def handed_out(tiles_s: Sequence[float], n_workers: int, commit_s: float) -> float:
    """Let the real loop hand tiles out, and record each in `commit_s`; give the time at the end."""
    hands = TimedHands(n_workers, tiles_s)
    names = [f"worker {worker}" for worker in range(n_workers)]
    handing = Handing(hands, names, lambda worker: 0, lambda *_: None, lambda *_: None, clock=lambda: 0.0)
    of = Scoring([[] for _ in tiles_s], [()], lambda tile: None, ignore)
    for _ in handing.score_tiles(range(len(tiles_s)), of):
        hands.now += commit_s
    return hands.now


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([0.0, 0.5, 9.0]))
def test_the_time_is_that_of_the_loop_that_hands_tiles_out(tiles_s, n_workers, commit_s):
    wall_s, waiting_s, idle_s = dealt_out(tiles_s, n_workers, commit_s)
    assert wall_s == pytest.approx(handed_out(tiles_s, n_workers, commit_s))
    assert n_workers * wall_s == pytest.approx(sum(tiles_s) + waiting_s + idle_s)  # no second is lost or counted twice
    assert wall_s - commit_s * len(tiles_s) <= sum(tiles_s) / n_workers + max(tiles_s)


def foretold(n_workers: int, n_tiles: int, tile_s: float = 100.0):
    """Foretell a run of equal tiles on cards that read 3 GB, a second's worth of the disk."""
    shares = (1 / n_tiles,) * n_tiles
    memory = Memory("device", 0, 0, 0, 0, 0, 0, 0, 0, shares)
    work = WorkForecast(2, 3, 4, 5, 1.0, 1, n_tiles * tile_s * 0.75, n_tiles * tile_s * 0.25, 0.0, 0.0)
    return forecast_workers(n_workers, work, memory, named_card("rtx-4090"), 3 * 10**9)


def test_what_limits_workers_is_named():
    """Ten tiles for eight workers take as long as sixteen; many tiles of a second are limited by loading."""
    few = foretold(8, 10)
    assert few.scoring_s == pytest.approx(1000)
    assert few.loading_s == pytest.approx(START_S + 8 + 3)
    assert few.wall_s == pytest.approx(few.loading_s + 200, abs=0.5)
    assert few.efficiency == pytest.approx(1000 / 8 / (few.loading_s + 200), rel=0.01)
    assert few.losses[0][0].startswith("no tile is left")
    assert sum(share for _, share in few.losses) + few.efficiency == pytest.approx(1)
    many = foretold(64, 6400, 1.0)
    assert many.losses[0][0].startswith("starting and loading")
    assert many.alone_s == pytest.approx(6400 + START_S + 4, rel=0.001)
    assert foretold(64, 64_000, 0.2).losses[0][0].startswith("waiting for the one process")
