"""What a run will cost, before anything is loaded: players, coalitions, work, bytes and hours.

Pure functions of a model's shape, a count of tokens and a machine's speeds. Source of the counts: every state that is
live before a sublayer is the full model's or that of a window that has ended; see `applications`.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowmem_layers.model.machine import Machine
from lowmem_layers.model.shape import ModelShape


@dataclass(frozen=True)
class Workload:
    """What is scored.

    Units: `trunk_tokens` tokens of the items' tries, of which `scored_tokens` are scored; `n_tiles` sweeps.
    """

    max_removed: int
    trunk_tokens: int
    scored_tokens: int
    n_tiles: int = 1


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
    home_bytes: int
    slot_bytes: int
    staging_bytes: int
    resident_bytes: int
    state_bytes_per_token: int
    compute_s: float
    streaming_s: float

    @property
    def hours(self) -> float:
        """Predict the run's length: weights stream while states are computed, so the longer of the two counts."""
        return max(self.compute_s, self.streaming_s) / 3600


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


def plan_work(shape: ModelShape, work: Workload, machine: Machine, *, home: str, itemsize: int) -> WorkPlan:
    """Put numbers to a run of `work` on `machine` with the packed weights on `home` (device, cpu or disk).

    Units: `itemsize` in bytes a number of the residual states.
    """
    n_players = len(shape.players)
    n_coalitions = count_coalitions(n_players, work.max_removed)
    macs = sum(live_states(p, work.max_removed) * own for p, own in enumerate(shape.macs)) * work.trunk_tokens
    macs += n_coalitions * shape.head_macs * work.scored_tokens
    speed = {"device": float("inf"), "cpu": machine.host_to_device_bytes_s, "disk": machine.disk_bytes_s}[home]
    return WorkPlan(
        n_players=n_players,
        n_coalitions=n_coalitions,
        applications=applications(n_players, work.max_removed),
        naive_applications=naive_applications(n_players, work.max_removed),
        flops=2.0 * macs,
        home_bytes=shape.n_bytes.packed,
        slot_bytes=shape.n_bytes.slots,
        staging_bytes=0 if home == "device" else 2 * shape.n_bytes.layer_packed,
        resident_bytes=shape.n_bytes.resident,
        state_bytes_per_token=n_coalitions * shape.hidden * itemsize,
        compute_s=macs / machine.macs_s,
        streaming_s=work.n_tiles * shape.n_bytes.packed / speed,
    )
