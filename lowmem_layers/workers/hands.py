"""The seam between the loop over tiles and what carries calls to workers: Ray, or a stand-in in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lowmem_layers.errors import LowmemLayersError, WorkerError

Handle = Any
"""A call that was sent; its answer is asked for later. It can be a key of a dict."""


class LostError(Exception):
    """The call's worker ended, or does not answer; the message says why. Whether the call was carried out is open."""


class EndedError(WorkerError):
    """A worker ended while it was asked something."""


def named(error: LowmemLayersError, who: str) -> LowmemLayersError:
    """Let an error's message begin with the name of the worker it comes from."""
    error.message = f"{who}: {error.message}"
    error.args = (error.message,)
    return error


class Hands(Protocol):
    """Workers, by number, that are called by the names of `Worker`'s methods."""

    @property
    def n_workers(self) -> int: ...

    def call(self, worker: int, method: str, *arguments: Any) -> Handle:
        """Send a call; a worker that is being restarted is waited for when its answer is asked for."""
        ...

    def share(self, value: Any) -> Any:
        """Keep a value where all workers can take it from, and give what stands for it among a call's arguments."""
        ...

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> list[Handle]:
        """Wait until at least one call is answered, or the time is over; give those that are answered."""
        ...

    def answer(self, handle: Handle) -> Any:
        """Give a call's answer, or raise what it raised in the worker.

        Raises:
            LostError: the worker ended.
        """
        ...

    def restart(self, worker: int) -> None:
        """End a worker that does not answer; it begins anew, without a model."""
        ...


def answered(hands: Hands, handle: Handle, who: str) -> Any:
    """Give a call's answer.

    Raises:
        LowmemLayersError: what the call raised, with the worker's name.
    """
    try:
        return hands.answer(handle)
    except LostError as error:
        raise EndedError(f"{who} ended: {error}", "fewer --workers leave each more memory") from error
    except LowmemLayersError as error:
        raise named(error, who) from None
    except Exception as error:
        raise WorkerError(
            f"{who}: {type(error).__name__}: {error}", "without --workers, --debug shows where an error comes from"
        ) from error
