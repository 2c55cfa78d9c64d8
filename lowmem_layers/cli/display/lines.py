"""Displays that write lines: sentences for logs and pipes, or a JSON object for each event."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

from lowmem_layers.cli.display.progress import Progress, advance, spell_rate, spell_time
from lowmem_layers.cli.output import spelled_for, visible
from lowmem_layers.findings.words import counted
from lowmem_layers.study.events import (
    Event,
    ModelExamined,
    ModelPlaced,
    Noted,
    RunFinished,
    RunPlanned,
    StageStarted,
    TasksRead,
)


class PlainDisplay:
    """Write a line for each stage, and while scoring a line every `every_s` seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], every_s: float = 10.0) -> None:
        self._stream = stream
        self._clock = clock
        self._every_s = every_s
        self._last = clock()
        self._progress = Progress(started=clock())

    def __call__(self, event: Event) -> None:
        """Write the event's line; of the events while scoring, only those that come `every_s` after the last line."""
        now = self._clock()
        self._progress = at = advance(self._progress, event, now)
        match event:
            case StageStarted(stage):
                line = stage
            case TasksRead(tasks, n_items):
                line = ", ".join(f"{task}: {counted(n, 'item')}" for task, n in zip(tasks, n_items, strict=True))
            case ModelPlaced():
                where = f"home {event.home}, computed on {event.device} in {event.dtype}"
                line = f"{event.model}, weights {event.packing}, {where}"
            case Noted(words):
                line = f"note: {words}"
            case ModelExamined():
                layout = "rows share their prefixes" if event.takes_tries else "rows are computed one by one"
                how = " (kept from an earlier start)" if event.kept else ""
                line = (
                    f"examined in {event.elapsed_s:.1f} s{how}: the sweep differs from whole passes by "
                    f"{event.sweep_gap_nats:.2g} nats; {layout} ({event.reason})"
                )
            case RunPlanned():
                line = (
                    f"{counted(event.n_items, 'item')} × {counted(event.n_coalitions, 'coalition')} of "
                    f"{event.n_players} players, {counted(event.n_tiles, 'tile')} ({event.tiles_done} done already)"
                )
            case RunFinished():
                line = event.status
            case _:
                if now - self._last < self._every_s:
                    return
                line = _how_far(at, now)
        self._last = now
        text = f"[{spell_time(now - at.started)}] {visible(line)}\n"
        self._stream.write(spelled_for(self._stream.encoding or "utf-8", text))
        self._stream.flush()


def _how_far(at: Progress, now: float) -> str:
    """Say how far the run is: layers while the weights are read, else the share of the work."""
    if at.plan is None:
        return f"layer {at.layers.done} of {at.layers.n_layers} read" if at.layers is not None else at.stage
    done, total = at.evaluations
    items, left = f"items {at.items_done}/{at.plan.n_items}", spell_time(at.left_s(now))
    line = f"{100 * at.fraction:6.1f} %, {items}, evaluations {done:,}/{total:,}, {left} left"
    if rates := at.worker_rates(now):
        fast = [f"{spell_rate(rate)}MAC/s" if state == "ready" else state for _, state, rate in rates]
        line += f"; {len(rates)} workers: {', '.join(fast)}"
    return line if at.judged is None else f"{line}; {at.judged.statement}: {at.judged.detail}"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not know by None, at any depth."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class JsonDisplay:
    """Write each event as one line, with the time since the start, the share done and the seconds left.

    The events and their fields are those of `lowmem_layers.study.events`; a number that is not finite is null.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._progress = Progress(started=clock())

    def __call__(self, event: Event) -> None:
        """Write the event's line."""
        now = self._clock()
        self._progress = advance(self._progress, event, now)
        left = self._progress.left_s(now)
        line = {
            "event": type(event).__name__,
            "time_s": round(now - self._progress.started, 3),
            "fraction": round(self._progress.fraction, 6),
            "left_s": None if left is None else round(left, 1),
            **asdict(event),
        }
        try:
            text = json.dumps(line, allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(line))
        self._stream.write(text + "\n")
        self._stream.flush()
