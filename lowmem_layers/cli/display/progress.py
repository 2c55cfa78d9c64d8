"""The state of a run, as a display needs it: events folded into numbers, with the time left for the whole job."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lowmem_layers.study.events import (
    Event,
    LayerRead,
    MachineMeasured,
    ModelExamined,
    ModelPlaced,
    Noted,
    RunFinished,
    RunPlanned,
    StageStarted,
    Standing,
    StatementJudged,
    Step,
    TasksRead,
    TileCommitted,
    TileStarted,
    WorkDone,
    WorkersChanged,
)

_APART_S = 1.0  # between two points of the pace
_MOST_POINTS = 400


@dataclass(frozen=True)
class Pace:
    """How much work was done by when in this call, for the time left.

    Other programs come and go, so the rate is that of the second half of the time so far.
    Shapes: `points` (clock, work) in order. Units: multiply-adds; the clock's seconds.
    """

    points: tuple[tuple[float, int], ...] = ()

    def add(self, now: float, work: int) -> Pace:
        """Note how much is done by now; points that are too close or too many are thinned out."""
        if self.points and now - self.points[-1][0] < _APART_S:
            return self
        points = self.points if len(self.points) < _MOST_POINTS else self.points[::2]
        return Pace((*points, (now, work)))

    def rate(self, now: float, work: int) -> float | None:
        """Give the work per second over the second half of the time so far; None before any was done."""
        if not self.points or work <= self.points[0][1] or now <= self.points[0][0]:
            return None
        middle = (self.points[0][0] + now) / 2
        since, before = max((point for point in self.points if point[0] <= middle), default=self.points[0])
        return (work - before) / (now - since) if work > before else None


@dataclass(frozen=True)
class Progress:
    """What is known of a run so far.

    `steps` are the stages that have begun and when, `remark` what was last said about the one that goes on.
    `work_done` is the planned work of the tiles that this call finished, of each task in `task_work` and of each worker
    in `worker_work`; `work_in` is what was reported of each tile that goes on (several, with workers; None where there
    is but one). The two may differ slightly for the same tile.

    Units: work in the engine's multiply-adds; times in the clock's seconds.
    """

    started: float
    stage: str = "starting"
    steps: tuple[tuple[Step, float], ...] = ()
    remark: str = ""
    tasks: TasksRead | None = None
    placed: ModelPlaced | None = None
    layers: LayerRead | None = None
    macs_s: float | None = None
    plan: RunPlanned | None = None
    running: tuple[TileStarted, ...] = ()
    work_in: tuple[tuple[int | None, int], ...] = ()
    workers: WorkersChanged | None = None
    worker_work: tuple[tuple[str, int], ...] = ()
    pace: Pace = field(default_factory=Pace)
    work_done: int = 0
    task_work: tuple[int, ...] = ()
    items_done: int = 0
    tiles_done: int = 0
    leaders: tuple[tuple[str, float], ...] = ()
    standing: Standing | None = None
    judged: StatementJudged | None = None
    status: str | None = None

    @property
    def fraction(self) -> float:
        """Give the share of the whole job that is done, with what earlier calls did."""
        if self.plan is None or self.plan.work_total <= 0:
            return 0.0
        return min(1.0, (self.plan.work_done + self._work) / self.plan.work_total)

    @property
    def task_fractions(self) -> tuple[float, ...]:
        """Give the share of each task that is done; tiles that go on count for their tasks by their planned work."""
        if self.plan is None:
            return ()
        reported, running = dict(self.work_in), [0.0] * len(self.plan.tasks)
        for tile in self.running:
            within, planned = reported.get(tile.tile, reported.get(None, 0)), sum(tile.work)
            share = min(1.0, within / planned) if planned else 0.0
            running = [before + share * part for before, part in zip(running, tile.work, strict=True)]
        finished = self.task_work or (0,) * len(self.plan.tasks)
        return tuple(
            min(1.0, (task.work_done + done + now) / task.work_total) if task.work_total else 1.0
            for task, done, now in zip(self.plan.tasks, finished, running, strict=True)
        )

    @property
    def evaluations(self) -> tuple[int, int]:
        """Count evaluations of an item with a coalition: those done (by the share of work), and all."""
        if self.plan is None:
            return 0, 0
        total = self.plan.n_items * self.plan.n_coalitions
        return round(self.fraction * total), total

    def throughput(self, now: float) -> float | None:
        """Give the work per second of this call, of late; None before any work was reported."""
        return self.pace.rate(now, self._work)

    def left_s(self, now: float) -> float | None:
        """Estimate the seconds left for the whole job; None before the rate is known."""
        rate = self.throughput(now)
        if rate is None or self.plan is None:
            return None
        return max(0.0, self.plan.work_total - self.plan.work_done - self._work) / rate

    @property
    def _work(self) -> int:
        return self.work_done + sum(work for _, work in self.work_in)

    def worker_rates(self, now: float) -> list[tuple[str, str, float | None]]:
        """Give each worker's name, state and work per second over its finished tiles; None before the first."""
        if self.workers is None:
            return []
        done, start = dict(self.worker_work), dict(self.steps).get("scoring", now)
        spent = now - start
        return [
            (name, state, done[name] / spent if name in done and spent > 0 else None)
            for name, state in zip(self.workers.names, self.workers.states, strict=True)
        ]


def left(at: Progress, error: BaseException | None) -> Progress:
    """Give the state when the display is left: an error before the run began leaves no RunFinished."""
    if at.status is None and error is not None:
        return Progress(at.started, stage="stopped", status="stopped")
    return at


def advance(at: Progress, event: Event, now: float) -> Progress:
    """Give the state after one more event."""
    match event:
        case StageStarted(stage, None):
            return replace(at, remark=stage)
        case StageStarted(stage, step):
            begun = at.steps if any(each == step for each, _ in at.steps) else (*at.steps, (step, now))
            pace = at.pace.add(now, at.work_done) if step == "scoring" else at.pace
            return replace(at, stage=stage, steps=begun, remark="", pace=pace)
        case TasksRead():
            return replace(at, tasks=event)
        case ModelPlaced():
            return replace(at, placed=event)
        case LayerRead():
            return replace(at, layers=event)
        case MachineMeasured(macs_s):
            return replace(at, macs_s=macs_s)
        case ModelExamined() | Noted():
            return at
        case RunPlanned():
            return replace(at, plan=event, items_done=event.items_done, tiles_done=event.tiles_done)
        case TileStarted():
            return replace(at, running=(*(each for each in at.running if each.tile != event.tile), event))
        case WorkersChanged():
            return replace(at, workers=event)
        case WorkDone(work, tile):
            reported = dict(at.work_in)
            reported[tile] = reported.get(tile, 0) + work
            within = tuple(reported.items())
            return replace(at, work_in=within, pace=at.pace.add(now, at.work_done + sum(reported.values())))
        case TileCommitted():
            ended = next((each.work for each in at.running if each.tile == event.tile), ())
            by_task = at.task_work or (0,) * len(ended)
            by_task = tuple(map(sum, zip(by_task, ended, strict=True))) if ended else by_task
            within = tuple(each for each in at.work_in if each[0] not in (event.tile, None))
            running = tuple(each for each in at.running if each.tile != event.tile)
            at = replace(at, work_done=at.work_done + event.work, work_in=within, task_work=by_task, running=running)
            if event.worker:
                done = dict(at.worker_work)
                done[event.worker] = done.get(event.worker, 0) + event.work
                at = replace(at, worker_work=tuple(done.items()), pace=at.pace.add(now, at._work))
            at = replace(at, leaders=event.leaders, standing=event.standing)
            return replace(at, items_done=event.items_done, tiles_done=event.tiles_done)
        case StatementJudged():
            return replace(at, judged=event)
        case RunFinished():
            return replace(at, status=event.status)


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
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= limit:
            return f"{rate / limit:.1f} {prefix}"
    return f"{rate:.0f} "
