"""The CUDA lane's order of copies and kernels, checked without a GPU: streams that run as late as they may.

Each stream here is a queue of work that is only done when something must have happened: a stream waits for an event,
or the host does. Whatever the lane does not order, happens in the worst order; so a buffer that is overwritten too
early, or read too soon, is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lowmem_layers.model.homes import staging
from lowmem_layers.model.homes.home import MemoryHome
from lowmem_layers.model.homes.staging import CudaLane, StagedFeed
from lowmem_layers.model.homes.store import GroupKey

N_BYTES = 512
ORDERS = [(False, False), (True, False), (False, True), (True, True)]  # whether kernels, copies are done at once


def copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source)


class LazyStream:
    """A queue of work. `hurry` runs a stream as soon as it is given work, as an idle device would."""

    def __init__(self, _device: Any = None, *, hurry: bool = False) -> None:
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.hurry = hurry

    def add(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        if self.hurry:
            self.run(len(self.queue))

    def run(self, until: int) -> None:
        while self.done < until:
            self.done += 1
            self.queue[self.done - 1]()

    def wait_event(self, event: LazyEvent) -> None:
        where = event.where
        if where is not None:
            self.add(lambda: where[0].run(where[1]))

    def wait_stream(self, other: LazyStream) -> None:
        until = len(other.queue)
        self.add(lambda: other.run(until))


class LazyEvent:
    """A point in a stream's queue."""

    def __init__(self) -> None:
        self.where: tuple[LazyStream, int] | None = None

    def record(self, stream: LazyStream) -> None:
        self.where = stream, len(stream.queue)

    def synchronize(self) -> None:
        if self.where is not None:
            self.where[0].run(self.where[1])


class LazyTensor:
    """A device buffer whose copies are queued on the stream that is current."""

    def __init__(self, data: torch.Tensor, current: Callable[[], LazyStream]) -> None:
        self.data = data
        self.current = current

    def __getitem__(self, index: Any) -> LazyTensor:
        return LazyTensor(self.data[index], self.current)

    def record_stream(self, stream: LazyStream) -> None:
        self.data.recorded_on = stream  # type: ignore[attr-defined]

    def copy_(self, source: torch.Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        self.current().add(lambda: copy(source, self.data))


class Device:
    """What `torch.cuda` and `torch.empty` become."""

    def __init__(self, *, hurry: tuple[bool, bool]) -> None:
        self.compute = LazyStream(hurry=hurry[0])
        self.hurry_copies = hurry[1]
        self.entered: list[LazyStream] = []

    def stream_of(self, _device: Any) -> LazyStream:
        return LazyStream(hurry=self.hurry_copies)

    def current(self, _device: Any = None) -> LazyStream:
        return self.entered[-1] if self.entered else self.compute

    @contextmanager
    def entering(self, stream: LazyStream) -> Iterator[None]:
        self.entered.append(stream)
        try:
            yield
        finally:
            self.entered.pop()

    @contextmanager
    def on(self, _device: Any) -> Iterator[None]:
        yield

    def empty(self, n_bytes: int, *, dtype: torch.dtype, device: Any = None, pin_memory: bool = False) -> Any:
        data = torch.zeros(n_bytes, dtype=dtype)
        return data if pin_memory else LazyTensor(data, self.current)


def install(fake: Device, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "Stream", fake.stream_of)
    patch.setattr(torch.cuda, "Event", LazyEvent)
    patch.setattr(torch.cuda, "current_stream", fake.current)
    patch.setattr(torch.cuda, "stream", fake.entering)
    patch.setattr(torch.cuda, "device", fake.on)
    patch.setattr(staging.torch, "empty", fake.empty)
    patch.setattr(staging, "ThreadPoolExecutor", OneByOneReader)


class OneByOneReader:
    """A reader thread that has always finished before anybody looks."""

    def __init__(self, *_args: Any, **_more: Any) -> None: ...

    def __enter__(self) -> OneByOneReader:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Callable[..., Any], *args: Any) -> Any:
        found = work(*args)
        return type("Done", (), {"result": staticmethod(lambda: found)})


@dataclass(frozen=True)
class Flat:
    """A layout of one run of bytes."""

    n_bytes: int = N_BYTES

    def views(self, buffer: Any) -> dict[str, Any]:
        return {"bytes": buffer}


def kernels_see_their_layers(device: Device, lane: CudaLane) -> bool:
    """Stream three sweeps of four layers; a kernel of each visit copies out what it finds in the device buffer."""
    home: Any = MemoryHome(torch.device("cpu"))
    keys: list[GroupKey] = [(layer, "attn") for layer in range(4)]
    for key in keys:
        home.layouts[key] = Flat()
        home._buffers[key] = torch.full((N_BYTES,), key[0] + 1, dtype=torch.uint8)
    feed, seen = StagedFeed(home, lane), []
    for _ in range(3):
        for key, views in zip(keys, feed.stream([[key] for key in keys]), strict=True):
            out, source = torch.zeros(N_BYTES, dtype=torch.uint8), views["bytes"].data  # type: ignore[attr-defined]
            device.compute.add(lambda out=out, source=source: copy(source[:N_BYTES], out))
            seen.append((key, out))
    device.compute.run(len(device.compute.queue))
    return all(bool((out == key[0] + 1).all()) for key, out in seen)


@pytest.mark.parametrize("order", ORDERS)
def test_every_kernel_sees_its_own_layer(order: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(hurry=order)
    install(device, monkeypatch)
    assert kernels_see_their_layers(device, CudaLane(N_BYTES, torch.device("cuda")))


def test_a_device_buffer_outlives_the_copies_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that is given up leaves a copy under way; torch reuses memory that it does not know to be in use."""
    device = Device(hurry=(False, False))
    install(device, monkeypatch)
    lane: Any = CudaLane(N_BYTES, torch.device("cuda"))
    assert [buffer.data.recorded_on for buffer in lane._there] == [lane._stream] * 2


WITHOUT: dict[str, Callable[..., Any]] = {
    "host": lambda lane, turn: lane._host[turn],
    "receive": lambda lane, turn: lane._there[turn],
    "release": lambda lane, turn: None,
}


@pytest.mark.parametrize("method", WITHOUT)
def test_the_check_sees_a_lane_that_forgets_to_wait(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three waits is needed: without it some order of things goes wrong."""
    forgetful = type("Forgetful", (CudaLane,), {method: WITHOUT[method]})
    right = []
    for order in ORDERS:
        with monkeypatch.context() as patch:
            device = Device(hurry=order)
            install(device, patch)
            right.append(kernels_see_their_layers(device, forgetful(N_BYTES, torch.device("cuda"))))
    assert not all(right)
