"""The state of a run, as a display needs it: events folded into numbers, with the time left for the whole job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowmem_layers.study.events import (
    Event,
    ModelExamined,
    Noted,
    RunFinished,
    RunPlanned,
    StageStarted,
    TileCommitted,
    WorkDone,
)


@dataclass(frozen=True)
class Progress:
    """What is known of a run so far.

    `work_done` is the planned work of the tiles that this call finished, `work_in_tile` what the engine reported since
    the last of them. The two may differ slightly for the same tile.

    Units: work in the engine's multiply-adds; times in the clock's seconds.
    """

    started: float
    stage: str = "starting"
    plan: RunPlanned | None = None
    scoring_since: float | None = None
    work_done: int = 0
    work_in_tile: int = 0
    items_done: int = 0
    tiles_done: int = 0
    leaders: tuple[tuple[str, float], ...] = ()
    status: str | None = None

    @property
    def fraction(self) -> float:
        """Give the share of the whole job that is done, with what earlier calls did."""
        if self.plan is None or self.plan.work_total <= 0:
            return 0.0
        return min(1.0, (self.plan.work_done + self._work) / self.plan.work_total)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Count evaluations of an item with a coalition: those done (by the share of work), and all."""
        if self.plan is None:
            return 0, 0
        total = self.plan.n_items * self.plan.n_coalitions
        return round(self.fraction * total), total

    def throughput(self, now: float) -> float | None:
        """Give the work per second of this call; None before any work was reported."""
        if self.scoring_since is None or self._work == 0 or now <= self.scoring_since:
            return None
        return self._work / (now - self.scoring_since)

    def left_s(self, now: float) -> float | None:
        """Estimate the seconds left for the whole job; None before the rate is known."""
        rate = self.throughput(now)
        if rate is None or self.plan is None:
            return None
        return max(0.0, self.plan.work_total - self.plan.work_done - self._work) / rate

    @property
    def _work(self) -> int:
        return self.work_done + self.work_in_tile


def advance(progress: Progress, event: Event, now: float) -> Progress:
    """Give the state after one more event."""
    match event:
        case StageStarted(stage):
            since = now if stage == "scoring" else progress.scoring_since
            return replace(progress, stage=stage, scoring_since=since)
        case ModelExamined() | Noted():
            return progress
        case RunPlanned():
            return replace(progress, plan=event, items_done=event.items_done, tiles_done=event.tiles_done)
        case WorkDone(work):
            return replace(progress, work_in_tile=progress.work_in_tile + work)
        case TileCommitted():
            done = progress.work_done + event.work
            at = replace(progress, work_done=done, work_in_tile=0, leaders=event.leaders)
            return replace(at, items_done=event.items_done, tiles_done=event.tiles_done)
        case RunFinished():
            return replace(progress, status=event.status)


def spell_time(seconds: float | None) -> str:
    """Write a duration as people read it: 42 s, 3:07, 1:02:45, 2 d 3 h; a dash where it is None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def spell_rate(rate: float | None) -> str:
    """Write a rate with the prefix of its unit: `2.3 M`; a dash where it is None."""
    if rate is None:
        return "–"
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= limit:
            return f"{rate / limit:.1f} {prefix}"
    return f"{rate:.0f} "
