"""From home to the computing device with two staging buffers: one is read from while the next visit fills the other.

A reader thread fills host buffers; a `Lane` carries a filled buffer to the device. On the CPU the lane is the buffer
itself. On CUDA it is a copy stream with events: two pinned host buffers and two device buffers, allocated once, no
synchronisation of the host with the compute stream. The pattern is that of vLLM's prefetching offloader.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from lowmem_layers.model.formats import Packed
from lowmem_layers.model.homes.home import Home, largest_layer_bytes
from lowmem_layers.model.homes.store import GroupKey

N_BUFFERS = 2


class Lane(Protocol):
    """Carry bytes from a host buffer to the device. A turn (0 or 1) names the pair of buffers."""

    def host(self, turn: int) -> torch.Tensor:
        """Return the host buffer of a turn, once its last contents have left it."""
        ...

    def send(self, turn: int, n_bytes: int) -> None:
        """Start moving the host buffer's first bytes to the device (called by the reader thread)."""
        ...

    def receive(self, turn: int) -> torch.Tensor:
        """Return the device buffer, its bytes there before whatever the caller computes next."""
        ...

    def release(self, turn: int) -> None:
        """Say that everything that reads the device buffer has been asked for."""
        ...


class HostLane:
    """The computing device is the CPU: the host buffer is the device buffer."""

    def __init__(self, n_bytes: int) -> None:
        self._buffers = [torch.empty(n_bytes, dtype=torch.uint8) for _ in range(N_BUFFERS)]

    def host(self, turn: int) -> torch.Tensor:
        """Return the turn's buffer."""
        return self._buffers[turn]

    def send(self, turn: int, n_bytes: int) -> None:
        """Do nothing."""

    def receive(self, turn: int) -> torch.Tensor:
        """Return the turn's buffer."""
        return self._buffers[turn]

    def release(self, turn: int) -> None:
        """Do nothing."""


class CudaLane:
    """Two pinned host buffers, two device buffers, a copy stream, and an event for each direction of waiting."""

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        self._device = device
        self._host = [torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(N_BUFFERS)]
        self._there = [torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(N_BUFFERS)]
        self._stream = torch.cuda.Stream(device)
        for buffer in self._there:  # a sweep that was given up may still copy into it when it is freed
            buffer.record_stream(self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # kernels may still use what lay there before
        self._copied = [torch.cuda.Event() for _ in range(N_BUFFERS)]
        self._used = [torch.cuda.Event() for _ in range(N_BUFFERS)]

    def host(self, turn: int) -> torch.Tensor:
        """Return the pinned buffer once the copy out of it is over (an event never recorded counts as over)."""
        self._copied[turn].synchronize()
        return self._host[turn]

    def send(self, turn: int, n_bytes: int) -> None:
        """Copy on the copy stream, after the kernels that still read the device buffer."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[turn])
            self._there[turn][:n_bytes].copy_(self._host[turn][:n_bytes], non_blocking=True)
            self._copied[turn].record(self._stream)

    def receive(self, turn: int) -> torch.Tensor:
        """Let the compute stream, not the host, wait for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._copied[turn])
        return self._there[turn]

    def release(self, turn: int) -> None:
        """Mark the point in the compute stream after which the device buffer may be overwritten."""
        self._used[turn].record(torch.cuda.current_stream(self._device))


class StagedFeed:
    """Deliver packed groups through a lane, fetching one request ahead."""

    def __init__(self, home: Home, lane: Lane) -> None:
        self._home = home
        self._lane = lane

    def stream(self, requests: Sequence[Sequence[GroupKey]]) -> Generator[Mapping[str, Packed], None, None]:
        """Yield each request's packed weights; they stay valid until the next one is asked for."""
        if not requests:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="lowmem-layers-reader") as reader:
            pending: Future[list[int]] = reader.submit(self._fetch, requests[0], 0)
            for index, request in enumerate(requests):
                turn = index % N_BUFFERS
                starts = pending.result()
                if index + 1 < len(requests):
                    pending = reader.submit(self._fetch, requests[index + 1], (index + 1) % N_BUFFERS)
                buffer = self._lane.receive(turn)
                views: dict[str, Packed] = {}
                for key, start in zip(request, starts, strict=True):
                    views |= self._home.layouts[key].views(buffer[start:])
                try:
                    yield views
                finally:
                    self._lane.release(turn)

    def describe(self) -> dict[str, Any]:
        """Say where the packed weights live, and what the two staging buffers take."""
        return {**self._home.describe(), "staging_bytes": N_BUFFERS * largest_layer_bytes(self._home.layouts)}

    def _fetch(self, request: Sequence[GroupKey], turn: int) -> list[int]:
        """Fill a host buffer and send it off. Units: the result is where each group starts, in bytes."""
        buffer = self._lane.host(turn)
        starts: list[int] = []
        cursor = 0
        for key in request:
            self._home.read_into(key, buffer[cursor:])
            starts.append(cursor)
            cursor += self._home.layouts[key].n_bytes
        self._lane.send(turn, cursor)
        return starts


def lane_to(device: torch.device, n_bytes: int) -> Lane:
    """Build the lane to a device, for groups of at most `n_bytes` bytes a visit.

    Raises:
        KeyError: there is none to this kind of device.
    """
    lanes: dict[str, Callable[[], Lane]] = {
        "cpu": lambda: HostLane(n_bytes),
        "cuda": lambda: CudaLane(n_bytes, device),
    }
    return lanes[device.type]()
