"""Several whole forward passes that go through the decoder layers in step, so that each layer is brought in once.

Each pass runs in a thread of its own, one at a time: it computes until it is about to enter a decoder layer, and is
taken up again when that layer's weights are there. What a pass changes in the model's modules (sublayers removed in
place) is undone whenever another one runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.layer_examination import BOTH
from lowmem_layers.model.homes.store import Visit

# cuBLAS keeps a handle for each thread that multiplies, with a workspace (4 MiB; 32 MiB on data-centre cards).
_AT_ONCE = {"cuda": 5}


@dataclass(frozen=True)
class Pass:
    """One forward pass: what it computes, and the change of the model's modules under which it does so."""

    compute: Callable[[], Any]
    changed: Callable[[], AbstractContextManager[Any]]


class _Abandoned(BaseException):
    """Ends a pass that nobody waits for any more."""


class _Walker(threading.Thread):
    """A pass that stops before each decoder layer until it is told to go on."""

    def __init__(self, work: Pass) -> None:
        super().__init__(daemon=True, name="lowmem-layers-pass")
        self._work = work
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.is_over = False
        self.is_abandoned = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Compute, stop by stop (called by the thread itself)."""
        self._go.acquire()
        try:
            if not self.is_abandoned:
                with torch.inference_mode():  # each thread has its own
                    self.result = self._work.compute()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the pass
            self.error = error
        self.is_over = True
        self._stopped.release()

    def stop(self) -> None:
        """Wait before a decoder layer (called by the thread itself)."""
        self._stopped.release()
        self._go.acquire()
        if self.is_abandoned:
            raise _Abandoned

    def go_on(self) -> None:
        """Let the pass compute up to its next stop, with its change in place. Raise what it raises."""
        if self.is_over:
            return
        with self._work.changed():
            self._go.release()
            self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the pass wherever it is."""
        self.is_abandoned = True
        self._go.release()
        self.join()


def run_in_step(model: DecoderModel, passes: Sequence[Pass]) -> list[Any]:
    """Run passes of the model's own forward; all of them together (on CUDA five) visit each decoder layer once.

    Raises:
        RemovalError: a pass enters more decoder layers than there are.
    """
    at_once, found = _AT_ONCE.get(model.device.type, len(passes)), []
    for low in range(0, len(passes), at_once):
        found += _walk(model, passes[low : low + at_once])
    if model.device.type == "cuda" and (clear := getattr(torch._C, "_cuda_clearCublasWorkspaces", None)):
        clear()  # those of threads that have ended, too
    return found


def _walk(model: DecoderModel, passes: Sequence[Pass]) -> list[Any]:
    """Run passes in step, each in a thread."""

    def stop(_module: Any, _args: Any) -> None:
        walker = threading.current_thread()
        if isinstance(walker, _Walker):
            walker.stop()

    # a layer without sublayers is one that text passes by
    layers = {index: layer.layer for index, layer in enumerate(model.anatomy.layers) if layer.kinds}
    handles = [layer.register_forward_pre_hook(stop) for layer in layers.values()]
    walkers = [_Walker(work) for work in passes]
    for walker in walkers:
        walker.start()
    try:
        for walker in walkers:  # up to the first layer
            walker.go_on()
        for _ in model.store.sweep([Visit(index, BOTH) for index in layers]):
            for walker in walkers:
                walker.go_on()
        if not all(walker.is_over for walker in walkers):
            raise RemovalError(
                f"{type(model.module).__name__}: one forward pass enters more than its {len(layers)} decoder layers",
                "layers that are run in a loop cannot be taken apart",
            )
    finally:
        for walker in walkers:  # first, so that one that is computing stops at its next layer
            walker.abandon()
        for handle in handles:
            handle.remove()
    return [walker.result for walker in walkers]
