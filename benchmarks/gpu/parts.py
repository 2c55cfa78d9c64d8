"""Where a sweep's time goes: each part between two CUDA events, or by the clock where a CPU computes."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from lowmem_layers.engine import scoring, sweep
from lowmem_layers.model.formats import four_bit
from lowmem_layers.model.homes import experts

_ROLES = {"attn": "attention", "ffn": "feed-forward"}


class Parts:
    """Collects the seconds of each part. Unpacking an expert inside a feed-forward counts in both."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._open: set[str] = set()

    def _mark(self) -> Any:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def around(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """Time a function's calls; `name` says from the arguments which part a call is. A part within itself is one."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            part = name(*args)
            if part in self._open:
                return function(*args, **kwargs)
            self._open.add(part)
            begin = self._mark()
            try:
                return function(*args, **kwargs)
            finally:  # a call that runs out of memory, too: the tile is computed again
                self._spans[part].append((begin, self._mark()))
                self._open.discard(part)

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of all sweeps in a `with` block."""
        names: list[tuple[Any, str, Callable[..., str]]] = [
            (sweep, "branch_output", lambda _anatomy, role, *_: _ROLES[role]),
            (sweep, "_fork", lambda *_: "forks"),
            (sweep, "prologue", lambda *_: "embedding, masks, positions"),
            (scoring.Head, "loglikelihoods", lambda *_: "head"),
            (four_bit.FourBit, "unpack", lambda *_: "unpacking"),
            (experts, "unpack_slice", lambda *_: "unpacking"),
        ]
        with ExitStack() as stack:
            for owner, attribute, name in names:
                stack.enter_context(mock.patch.object(owner, attribute, self.around(getattr(owner, attribute), name)))
            yield

    def seconds(self) -> dict[str, float]:
        """Add up each part's seconds."""
        if not self._is_gpu:
            return {name: sum(b - a for a, b in spans) for name, spans in self._spans.items()}
        torch.cuda.synchronize()
        return {name: sum(a.elapsed_time(b) for a, b in spans) / 1000 for name, spans in self._spans.items()}


def kernels(work: Callable[[], object], device: torch.device, top: int = 20) -> dict[str, Any]:
    """List the kernels that take the most time, by torch's profiler, and how long the device computes in all."""
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CUDA] if device.type == "cuda" else [activity.CPU]
    begin = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    rows = [(row.key, row.self_device_time_total if device.type == "cuda" else row.self_cpu_time_total, row.count)
            for row in profile.key_averages()]  # fmt: skip
    rows.sort(key=lambda row: -row[1])
    busy = sum(row[1] for row in rows) / 1e6
    listed = [{"kernel": name[:120], "seconds": spent / 1e6, "calls": count} for name, spent, count in rows[:top]]
    return {"wall_s": wall, "busy_s": busy, "kernels": listed}


def synchronisations(work: Callable[[], object], device: torch.device) -> int | None:
    """Count how often the host waits for the device; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # torch also warns once that the mode does not see all
    return sum("called a synchronizing" in str(each.message) for each in seen)
