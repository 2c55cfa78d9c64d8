"""What a run will cost, before anything is loaded: players, coalitions, work, bytes and hours.

Pure functions of a model's shape, a count of tokens and a machine's speeds. Source of the counts: every state that is
live before a sublayer is the full model's or that of a window that has ended; see `applications`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_layers.forecast.machine import Machine
from lowmem_layers.model.shape import ModelShape


@dataclass(frozen=True)
class Workload:
    """What is scored.

    Shapes: `live` (N,) counts the states that each sublayer is applied to. Units: `trunk_tokens` tokens of the items'
    tries, of which `scored_tokens` are scored; `naive_applications` a token; `n_tiles` sweeps.
    """

    live: tuple[int, ...]
    n_coalitions: int
    naive_applications: int
    trunk_tokens: int
    scored_tokens: int
    n_tiles: int = 1


@dataclass(frozen=True)
class Rates:
    """How fast a machine does each part of the work.

    Units: multiply-adds a second in decoder layers and in the head; numbers unpacked a second; bytes a second from
    where the weights live.
    """

    layer_macs_s: float
    head_macs_s: float
    unpacked_s: float
    streamed_bytes_s: float


@dataclass(frozen=True)
class WorkPlan:
    """What a run will take.

    Units: `flops` floating-point operations (two a multiply-add); bytes; seconds. `state_bytes_per_token` is what the
    residual states of one trunk token take when all coalitions are live.
    """

    n_players: int
    n_coalitions: int
    applications: int
    naive_applications: int
    flops: float
    state_bytes_per_token: int
    compute_s: float
    unpacking_s: float
    streaming_s: float

    @property
    def hours(self) -> float:
        """Predict the run's length: weights stream while states are computed, so the longer of the two counts."""
        return max(self.compute_s + self.unpacking_s, self.streaming_s) / 3600


def count_coalitions(n_players: int, max_removed: int) -> int:
    """Count the full model and every window of 1 to `max_removed` sublayers."""
    return 1 + sum(n_players - size + 1 for size in range(1, max_removed + 1))


def live_states(position: int, max_removed: int) -> int:
    """Count the states the sublayer at `position` is applied to: the full model's, and each window's that has ended."""
    return 1 + sum(max(0, position - size + 1) for size in range(1, max_removed + 1))


def applications(n_players: int, max_removed: int) -> int:
    """Count sublayer applications of a sweep: N + sum over k of (N − k)(N − k + 1) / 2."""
    return sum(live_states(position, max_removed) for position in range(n_players))


def naive_applications(n_players: int, max_removed: int) -> int:
    """Count sublayer applications when every coalition is computed from the start: the sum of its present sublayers."""
    windows = range(1, max_removed + 1)
    return n_players + sum((n_players - size + 1) * (n_players - size) for size in windows)


def windows_workload(
    n_players: int, max_removed: int, trunk_tokens: int, scored_tokens: int, n_tiles: int = 1
) -> Workload:
    """Count by the closed forms: the full model and all windows of 1 to `max_removed` sublayers."""
    return Workload(
        tuple(live_states(position, max_removed) for position in range(n_players)),
        count_coalitions(n_players, max_removed),
        naive_applications(n_players, max_removed),
        trunk_tokens,
        scored_tokens,
        n_tiles,
    )


def rates_of(machine: Machine, home: str) -> Rates:
    """Take a machine's bare products for the speed of everything. `home` is device, cpu or disk."""
    speeds = {"device": float("inf"), "cpu": machine.host_to_device_bytes_s, "disk": machine.disk_bytes_s}
    return Rates(machine.macs_s, machine.macs_s, float("inf"), speeds[home])


def plan_work(shape: ModelShape, work: Workload, rates: Rates, *, itemsize: int) -> WorkPlan:
    """Put numbers to a run. Units: `itemsize` in bytes a number of the residual states."""
    each = [live * own for live, own in zip(work.live, shape.macs, strict=True)]
    layers = sum(each[:-1]) * work.trunk_tokens + each[-1] * work.scored_tokens  # behind the last attention: only these
    head = work.n_coalitions * shape.head_macs * work.scored_tokens
    return WorkPlan(
        n_players=len(shape.players),
        n_coalitions=work.n_coalitions,
        applications=sum(work.live),
        naive_applications=work.naive_applications,
        flops=2.0 * (layers + head),
        state_bytes_per_token=work.n_coalitions * shape.hidden * itemsize,
        compute_s=layers / rates.layer_macs_s + head / rates.head_macs_s,
        unpacking_s=work.n_tiles * shape.n_streamed / rates.unpacked_s,
        streaming_s=work.n_tiles * shape.n_bytes.packed / rates.streamed_bytes_s,
    )
