"""Workers as Ray actors: on this machine, or on a cluster whose address is given.

Ray restarts an actor that ended (`max_restarts`); what it was doing is given to another by the loop over tiles, so
its calls are not repeated on the same actor (`max_task_retries=0`), but for those that load the model.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lowmem_layers.errors import LowmemLayersError, UsageError, WorkerError
from lowmem_layers.record.spec import Specification
from lowmem_layers.study.contracts import Prepare
from lowmem_layers.workers.hands import Handle, LostError
from lowmem_layers.workers.worker import Worker

_STORE_BYTES = 256 << 20  # tiles' scores pass through; Ray would take a third of the memory
_CONNECT = "see that ray start --head runs there and that its port can be reached; ADDRESS is HOST:6379 or auto"
_PATIENT = {"load", "arrive"}  # calls that wait for a worker that begins anew
_MOST_RETRIES = 60  # of these: Ray tries once a second while an actor restarts; not for ever, if memory runs out


def library() -> Any:
    """Import Ray, an optional extra that type checkers need not have.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("ray") is None:
        hint = 'install it with: pip install "lowmem-layers[ray]"'
        raise UsageError("--workers and --ray need Ray, which is not installed", hint)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    return import_module("ray")


@contextlib.contextmanager
def ray_open(address: str | None, n_cpus: int) -> Iterator[None]:
    """Start Ray on this machine, or connect to a cluster; end what was started. A Ray that is open already is used.

    Raises:
        UsageError: Ray is missing, the address cannot be reached, or the versions differ.
        WorkerError: Ray does not start on this machine.
    """
    ray = library()
    if ray.is_initialized():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        try:
            if address is None:
                own = {"num_cpus": n_cpus, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
                ray.init(address="local", log_to_driver=False, logging_level="error", **own)
            else:
                check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level="error")
        except LowmemLayersError:
            raise
        except Exception as error:  # Ray raises many, among them a bare Exception where it took too long to start
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "ersion mismatch" in str(error):
                raise UsageError(f"Ray at {address}: {words}", "use the same Ray and Python on every host") from error
            if address is None:
                raise WorkerError(f"Ray did not start: {words}", "try again when the machine is less busy") from error
            raise UsageError(f"Ray cannot be reached at {address}: {words}", _CONNECT) from error
        except SystemExit as stop:  # Ray's own answer to SIGTERM, while it starts
            raise KeyboardInterrupt from stop
        finally:
            for number, handler in before.items():  # Ray puts its own in the place of ours
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, handler)
        # Ray would write its own remarks about workers that ended on stdout, where data go; the run says what happened.
        setattr(import_module("ray._private.worker"), "_worker_logs_enabled", False)  # noqa: B010 (unknown to types)
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """See that something listens at HOST:PORT: Ray itself would wait there for minutes, and write its own lines.

    Raises:
        UsageError: nothing does within five seconds.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            words = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"Ray cannot be reached at {address}: {words}", _CONNECT) from error


class RayHands:
    """Actors of the Ray that is open: one device each, or CPUs where there are no cards."""

    def __init__(self, n_workers: int | None, on_cards: bool, threads: int | None, prepare: Prepare | None) -> None:
        self._ray = ray = library()
        each = {"num_gpus": 1, "num_cpus": 1} if on_cards else {"num_cpus": threads or 1}
        self.n_workers = _count(ray.cluster_resources(), n_workers, each, len(ray.nodes()))
        actor = ray.remote(max_restarts=-1, max_task_retries=0, concurrency_groups={"news": 1}, **each)(Worker)
        self._actors = [actor.options(scheduling_strategy="SPREAD").remote(prepare) for _ in range(self.n_workers)]

    def call(self, worker: int, method: str, *arguments: Any) -> Handle:
        """Send a call; news are told beside another call."""
        options: dict[str, Any] = {"concurrency_group": "news"} if method == "news" else {}
        if method in _PATIENT:
            options["max_task_retries"] = _MOST_RETRIES
        return getattr(self._actors[worker], method).options(**options).remote(*arguments)

    def share(self, value: Any) -> Any:
        """Put a value into Ray's store."""
        return self._ray.put(value)

    def wait(self, handles: Sequence[Handle], timeout_s: float) -> list[Handle]:
        """Wait until at least one call is answered."""
        done, rest = self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)
        if done and rest:
            done += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return done

    def answer(self, handle: Handle) -> Any:
        """Give a call's answer; what was raised in the worker is raised as it was there."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise RuntimeError(str(error).strip().splitlines()[-1]) from error
        except errors.RayError as error:
            raise LostError(_reason(error)) from error

    def restart(self, worker: int) -> None:
        """End a worker; Ray starts it anew."""
        self._ray.kill(self._actors[worker], no_restart=False)

    def dismiss(self) -> None:
        """End all workers."""
        for actor in self._actors:
            self._ray.kill(actor)


def _count(has: dict[str, float], n_workers: int | None, each: dict[str, int], n_nodes: int) -> int:
    """Settle the number of workers: as many as there are cards, or hosts, where none is given.

    Raises:
        UsageError: there is no room for so many.
    """
    what, name = ("num_gpus", "GPU") if "num_gpus" in each else ("num_cpus", "CPU")
    room = int(has.get(name, 0) // each[what])
    wanted = n_workers or (room if name == "GPU" else min(room, n_nodes))
    if wanted > room or wanted < 1:
        raise UsageError(
            f"{wanted} workers of {each[what]} {name}s each, but Ray has {has.get(name, 0):g} {name}s",
            "take fewer --workers or --threads, or let more hosts join the cluster",
        )
    return wanted


def _reason(error: Exception) -> str:
    """Say in one line why a worker was lost."""
    text = str(error)
    if "OutOfMemory" in type(error).__name__ or "due to high memory usage" in text.split("Some common causes")[0]:
        return "it ended: out of memory"
    if "ModuleNotFoundError" in text or "No module named" in text:
        line = next(line for line in text.splitlines() if "No module named" in line)
        return f"it cannot start: {line.strip()} (install lowmem-layers on its host)"
    return "it ended"


def check_device(specification: Specification) -> None:
    """See that Ray can give workers the device that was asked for.

    Raises:
        UsageError: it gives such devices to nobody.
    """
    if specification.device in ("mps", "xpu"):
        raise UsageError(
            f"--workers with --device {specification.device}: workers compute on CPUs or on CUDA cards",
            "leave --workers away: one process computes on that device",
        )


def wants_cards(specification: Specification) -> bool:
    """Tell whether workers compute on cards: where that is asked for, or left open and Ray has some."""
    return specification.device == "cuda" or (
        specification.device == "auto" and library().cluster_resources().get("GPU", 0) >= 1
    )
