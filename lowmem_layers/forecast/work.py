"""What a run will cost, before anything is loaded: coalitions, sublayer applications, work and hours.

Pure functions of a model's shape, the prefix tree of its coalitions, what the items come to, and a machine's speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.engine.budget import ItemCost, Widths
from lowmem_layers.forecast.machine import Machine
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.players.tree import PrefixTree
from lowmem_layers.model.shape import ModelShape


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
class WorkForecast:
    """How much a run will compute, and how long that will take.

    Units: `applications` and `naive_applications` (every coalition from the start) of sublayers, a token; `flops`
    floating-point operations (two a multiply-add); seconds. `state_bytes_per_token` is what the residual states
    of one token take when all coalitions are live.
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


def rates_of(machine: Machine, home: str) -> Rates:
    """Take a machine's bare products for the speed of everything. `home` is device, cpu or disk."""
    speeds = {"device": float("inf"), "cpu": machine.host_to_device_bytes_s, "disk": machine.disk_bytes_s}
    return Rates(machine.macs_s, machine.macs_s, float("inf"), speeds[home])


def forecast_work(
    shape: ModelShape, coalitions: Sequence[Removed], tree: PrefixTree, cost: ItemCost, n_tiles: int, rates: Rates
) -> WorkForecast:
    """Put numbers to a run in which the items of all tiles together cost `cost`; each tile brings all weights in."""
    return WorkForecast(
        n_players=tree.n_players,
        n_coalitions=tree.n_slots,
        applications=tree.applications,
        naive_applications=sum(tree.n_players - len(removed) for removed in coalitions),
        flops=2.0 * cost.work,
        state_bytes_per_token=Widths.of(shape).count(1, 0, 0, tree).n_bytes,
        compute_s=(cost.work - cost.head_work) / rates.layer_macs_s + cost.head_work / rates.head_macs_s,
        unpacking_s=n_tiles * shape.n_streamed / rates.unpacked_s,
        streaming_s=n_tiles * shape.n_bytes.packed / rates.streamed_bytes_s,
    )
