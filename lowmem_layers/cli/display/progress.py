"""Where a run stands: events folded into numbers, with the time left over the whole job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lowmem_layers.study.events import (
    Event,
    ModelExamined,
    RunFinished,
    RunPlanned,
    StageStarted,
    TileCommitted,
    WorkDone,
)


@dataclass(frozen=True)
class Progress:
    """What a display needs to know.

    Units: work in the engine's multiply-adds; times are the clock's seconds. `work_done` is this call's finished tiles
    as planned, `work_in_tile` what the engine reported since: the two need not agree to the last product.
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
        """Give the share of the whole job's work that is done, an earlier call's included."""
        if self.plan is None or self.plan.work_total <= 0:
            return 0.0
        return min(1.0, (self.plan.work_done + self._work) / self.plan.work_total)

    @property
    def evaluations(self) -> tuple[int, int]:
        """Count item × coalition evaluations: done by the work's share, and all."""
        if self.plan is None:
            return 0, 0
        total = self.plan.n_items * self.plan.n_coalitions
        return round(self.fraction * total), total

    def throughput(self, now: float) -> float | None:
        """Give this call's rate (work a second), once there is one."""
        if self.scoring_since is None or self._work == 0 or now <= self.scoring_since:
            return None
        return self._work / (now - self.scoring_since)

    def left_s(self, now: float) -> float | None:
        """Estimate the seconds left for the whole job."""
        rate = self.throughput(now)
        if rate is None or self.plan is None:
            return None
        return max(0.0, self.plan.work_total - self.plan.work_done - self._work) / rate

    @property
    def _work(self) -> int:
        return self.work_done + self.work_in_tile


def advance(progress: Progress, event: Event, now: float) -> Progress:
    """Fold one event in."""
    match event:
        case StageStarted(stage):
            since = now if stage == "scoring" else progress.scoring_since
            return replace(progress, stage=stage, scoring_since=since)
        case ModelExamined():
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
    """Write a duration as people read it: 42 s, 3:07, 1:02:45, 2 d 3 h."""
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
    """Write a rate with a prefix: 2.3 M."""
    if rate is None:
        return "–"
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= limit:
            return f"{rate / limit:.1f} {prefix}"
    return f"{rate:.0f} "
