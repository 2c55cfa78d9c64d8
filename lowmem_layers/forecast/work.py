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

# Read and written for a number that is unpacked, in bytes: NF4 is looked up and copied; int8 goes through float32.
_UNPACKING_BYTES = {"none": 4.0, "nf4": 7.0, "int8": 11.0}


@dataclass(frozen=True)
class Rates:
    """How fast a machine does each part of the work.

    Units: multiply-adds a second in decoder layers and in the head; numbers unpacked a second; bytes a second from
    where the weights live; bytes a second that everything but products reads and writes (infinite where the speed of
    layers and head was measured as a whole).
    """

    layer_macs_s: float
    head_macs_s: float
    unpacked_s: float
    streamed_bytes_s: float
    moved_bytes_s: float = float("inf")


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
    elementwise_s: float
    unpacking_s: float
    streaming_s: float

    @property
    def hours(self) -> float:
        """Predict the run's length: weights stream while states are computed, so the longer of the two counts."""
        return max(self.compute_s + self.elementwise_s + self.unpacking_s, self.streaming_s) / 3600


def rates_of(machine: Machine, home: str, target: str = "nf4") -> Rates:
    """Take a machine's bare products and its memory's bandwidth for the speed of everything.

    `home` is device, cpu or disk; `target` is what weights are packed as: none, nf4 or int8.
    """
    speeds = {"device": float("inf"), "cpu": machine.host_to_device_bytes_s, "disk": machine.disk_bytes_s}
    unpacked_s = machine.moved_bytes_s / _UNPACKING_BYTES[target]
    return Rates(machine.macs_s, machine.macs_s, unpacked_s, speeds[home], machine.moved_bytes_s)


def moved_bytes(shape: ModelShape, tree: PrefixTree, nodes: int, scored: int) -> int:
    """Count what everything but the products reads and writes, for `nodes` tokens of which `scored` are scored.

    Counted in kernels as transformers writes them, for 16-bit states. A norm turns to float32 and back: 18 numbers a
    channel. Attention, 37: a norm, rotary embedding of queries and of keys a quarter as wide, heads put side by side,
    the sum with the stream. Feed-forward, 21: a norm and the sum; 5 a number of the widest intermediate for activation
    and gate. Head: a norm; float32 logits written once, and read and written for their log-softmax.
    """
    total = 0
    for player, step in zip(shape.players, tree.steps, strict=True):
        each = 37 * shape.hidden if player.is_attention else 21 * shape.hidden + 5 * shape.widest
        is_last_ffn = player == shape.players[-1] and not player.is_attention
        total += len(step.advanced) * (scored if is_last_ffn else nodes) * each * shape.itemsize
    return total + tree.n_slots * scored * (18 * shape.hidden * shape.itemsize + 16 * shape.vocabulary)


def forecast_work(
    shape: ModelShape, coalitions: Sequence[Removed], tree: PrefixTree, cost: ItemCost, n_tiles: int, rates: Rates,
    moved: int = 0,
) -> WorkForecast:  # fmt: skip
    """Put numbers to a run in which the items of all tiles together cost `cost`; each tile brings all weights in.

    Units: `moved` in bytes, see `moved_bytes`.
    """
    return WorkForecast(
        n_players=tree.n_players,
        n_coalitions=tree.n_slots,
        applications=tree.applications,
        naive_applications=sum(tree.n_players - len(removed) for removed in coalitions),
        flops=2.0 * cost.work,
        state_bytes_per_token=Widths.of(shape).count(1, 0, 0, tree).n_bytes,
        compute_s=(cost.work - cost.head_work) / rates.layer_macs_s + cost.head_work / rates.head_macs_s,
        elementwise_s=moved / rates.moved_bytes_s,
        unpacking_s=n_tiles * shape.n_streamed / rates.unpacked_s,
        streaming_s=n_tiles * shape.n_bytes.packed / rates.streamed_bytes_s,
    )
