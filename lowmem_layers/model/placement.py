"""Where packed weights are put so that everything fits the given memory, or a refusal that says what would fit.

Everything here is arithmetic on byte counts that are known before a weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lowmem_layers.errors import BudgetError
from lowmem_layers.model.spec import Offload, format_bytes

HomeName = Literal["device", "cpu", "disk"]

_WORKSPACE_BYTES = 48 << 20  # quantising works in pieces; and what the allocator keeps
# What a process still takes after it was measured: the tokenizer's tables, kernels, threads, Arrow, and the modules of
# a run that a plan does not import (5 MiB).
_LATER_BYTES = 96 << 20
_RESERVED_SHARE = 8  # one eighth of the memory is left for residual states
_USUAL_STATES_BYTES = 2 << 30  # of RAM, where no limit is given: more would not make a CPU faster
# What a process takes of a GPU besides torch's own allocations: the CUDA context with torch's kernels (300 to 500 MB by
# card and driver; assumed where `gpu` cannot measure it), and the workspaces of cuBLAS (32 MiB on data-centre cards)
# and of bitsandbytes.
GPU_CONTEXT_BYTES = 512 << 20
_GPU_WORKSPACE_BYTES = 64 << 20
_FREE_SHARE = 10  # of a GPU's free memory one tenth is left to other programs, whose needs change
_STEP_BYTES = 64 << 20  # limits are suggested in steps of 64 MiB
_HOMES: dict[Offload, tuple[HomeName, ...]] = {
    "none": ("device",),
    "cpu": ("cpu",),
    "disk": ("disk",),
    "auto": ("device", "cpu", "disk"),
}


@dataclass(frozen=True)
class ModelBytes:
    """What a model takes, part by part.

    `packed`: all decoder layers at home; `resident`: embedding, norms, head; `slots`: the dense weights of one layer;
    `layer_packed`: the largest layer, packed (a staging buffer); `layer_source`: the largest layer in the checkpoint's
    own precision and in the one it is packed from, both of which loading holds at once; `process`: the interpreter and
    libraries; `expert_slots`: what `slots` becomes with one expert of a mixture at a time (None: there is no mixture,
    or it cannot be divided); `shelf`: the weights that a study quantises, packed, which are kept from tile to tile
    where there is room.
    """

    packed: int
    resident: int
    slots: int
    layer_packed: int
    layer_source: int
    process: int
    expert_slots: int | None = None
    shelf: int = 0


@dataclass(frozen=True)
class Placement:
    """A home, and the memory that the model takes there.

    Units: `gpu_bytes` and `cpu_bytes` while running, without states; `loading_bytes` of host memory at most while it is
    loaded; `states_bytes` is left on the computing device for states and what is computed of them.
    `one_expert`: a mixture's experts are brought into the slot one at a time. `shelf_bytes` of host memory are for the
    weights that a study quantises; they are quantised anew for every tile where these are 0.
    """

    home: HomeName
    gpu_bytes: int
    cpu_bytes: int
    loading_bytes: int
    slot_bytes: int
    staging_bytes: int
    one_expert: bool = False
    states_bytes: int = 0
    shelf_bytes: int = 0


@dataclass(frozen=True)
class Spare:
    """What of the computing device's memory is kept free for residual states: one part in `share`, and at least `room`.

    Units: bytes; a share of 0 keeps none.
    """

    share: int = 0
    room: int = 0

    def beside(self, n_bytes: int) -> int:
        """Count the memory in which `n_bytes` leave enough free."""
        return max(self._by_share(n_bytes), n_bytes + self.room)

    def by_room(self, n_bytes: int) -> bool:
        """Tell whether `room` decides, and not `share`."""
        return n_bytes + self.room > self._by_share(n_bytes)

    def _by_share(self, n_bytes: int) -> int:
        return n_bytes if not self.share else -(-n_bytes * self.share // (self.share - 1))


NO_SPARE = Spare()


@dataclass(frozen=True)
class MemoryLimits:
    """What may be taken. Units: bytes. `on_gpu`: the GPU computes, and not the CPU.

    `states` is the most that states take where a single item does not need more (None: all that is left). `context` is
    what the process takes of the GPU besides tensors. Without `streams`, weights live on the device or nowhere. `free`
    is what there is for this process, of the GPU and of the host's memory (None: unknown).
    """

    on_gpu: bool
    gpu: int
    cpu: int
    states: int | None = None
    context: int = GPU_CONTEXT_BYTES
    streams: bool = True
    free: tuple[int, int] | None = None

    def left_by(self, placement: Placement, room: int) -> int:
        """Count what a placement leaves on the computing device, for states of which an item needs `room` bytes."""
        left = self.gpu - placement.gpu_bytes if self.on_gpu else self.cpu - placement.cpu_bytes
        return left if self.states is None else min(left, max(self.states, room))

    def broken_by(self, placement: Placement, spare: Spare) -> dict[str, tuple[int, int]]:
        """List the limits that a placement breaks: option name → bytes needed and given."""
        gpu = spare.beside(placement.gpu_bytes)
        running = placement.cpu_bytes if self.on_gpu else spare.beside(placement.cpu_bytes)
        cpu = max(placement.loading_bytes, running)
        broken = {}
        if self.on_gpu and gpu > self.gpu:
            broken["--max-gpu-memory"] = (gpu, self.gpu)
        if cpu > self.cpu:
            broken["--max-cpu-memory"] = (cpu, self.cpu)
        return broken


def needed(
    sizes: ModelBytes,
    home: HomeName,
    *,
    on_gpu: bool,
    one_expert: bool = False,
    context: int = GPU_CONTEXT_BYTES,
    shelf: int = 0,
) -> Placement:
    """Add up what a home costs on GPU and host."""
    slots = sizes.expert_slots if one_expert and sizes.expert_slots is not None else sizes.slots
    staging = 0 if home == "device" or (home == "cpu" and not on_gpu) else 2 * sizes.layer_packed
    running = sizes.resident + slots + staging
    in_ram = home == "cpu" or (home == "device" and not on_gpu)
    on_host = sizes.process + (sizes.packed if in_ram else 0)
    loading = on_host + sizes.resident + sizes.layer_source + sizes.layer_packed + _WORKSPACE_BYTES
    on_host += _LATER_BYTES + shelf
    if not on_gpu:
        return Placement(home, 0, on_host + running, loading, slots, staging, one_expert, shelf_bytes=shelf)
    on_device = context + _GPU_WORKSPACE_BYTES + running + (sizes.packed if home == "device" else 0)
    # torch rounds pinned memory up to powers of two
    pinned = 2 * (1 << max(0, sizes.layer_packed - 1).bit_length()) if staging else 0
    return Placement(home, on_device, on_host + pinned, loading, slots, staging, one_expert, shelf_bytes=shelf)


def usual_states_bytes(free_gpu: int | None) -> int:
    """Count what states may take where nobody says it: of RAM, or of what is free on a GPU. Units: bytes."""
    return _USUAL_STATES_BYTES if free_gpu is None else free_gpu - free_gpu // _FREE_SHARE


def limits_now(
    *, on_gpu: bool, gpu: int | None, cpu: int | None, free_gpu: int, free_cpu: int, context: int = GPU_CONTEXT_BYTES,
    streams: bool = True,
) -> MemoryLimits:  # fmt: skip
    """Turn what the user allows and what is free into limits: never more than there is.

    Units: bytes; `gpu` and `cpu` as given by the options (None: not given); `free_gpu` besides this process's CUDA
    context, which takes `context`, `free_cpu` with what this process has already.
    """
    gpu_limit = 0
    if on_gpu:
        free = context + free_gpu
        gpu_limit = context + usual_states_bytes(free_gpu) if gpu is None else min(gpu, free)
    usual = _USUAL_STATES_BYTES if not on_gpu and cpu is None else None
    free_bytes = context + free_gpu, free_cpu
    return MemoryLimits(on_gpu, gpu_limit, free_cpu if cpu is None else cpu, usual, context, streams, free_bytes)


def place(sizes: ModelBytes, offload: Offload, limits: MemoryLimits, *, spare: Spare = NO_SPARE) -> Placement:
    """Choose the fastest home that fits: the computing device, then RAM, then disk.

    A mixture's experts are brought in one at a time only where no home leaves room for a slot that holds all of them:
    this unpacks an expert again for every batch of tokens, while streaming hides behind the computation.

    Raises:
        BudgetError: none of the allowed homes fits; the message has the bytes needed and given.
    """
    on_gpu = limits.on_gpu
    homes: list[HomeName] = [
        home for home in _HOMES[offload] if (on_gpu or home != "device") and (limits.streams or home == "device")
    ]
    homes = homes or ["cpu"]  # a CPU's own memory is RAM
    ways = (False, True) if sizes.expert_slots is not None else (False,)
    tried = [
        needed(sizes, home, on_gpu=on_gpu, one_expert=way, context=limits.context, shelf=shelf)
        for way in ways
        for home in homes
        for shelf in dict.fromkeys((sizes.shelf, 0))
    ]
    for placement in tried:
        if not limits.broken_by(placement, spare):
            return replace(placement, states_bytes=limits.left_by(placement, spare.room))
    raise _refusal(tried[-1], sizes, offload, limits, spare)


def place_with_states(sizes: ModelBytes, offload: Offload, limits: MemoryLimits, *, room: int = 0) -> Placement:
    """Choose a home that leaves an eighth of the computing device's memory for residual states, or more where needed.

    The check before loading, the plan and the engine all take `states_bytes` of the result.

    Units: bytes; `room` is the least that the states of an item and what is computed of them at once take.

    Raises:
        BudgetError: none of the allowed homes fits; the message has the bytes needed and given.
    """
    return place(sizes, offload, limits, spare=Spare(_RESERVED_SHARE, room))


def _refusal(
    closest: Placement, sizes: ModelBytes, offload: Offload, limits: MemoryLimits, spare: Spare
) -> BudgetError:
    """Say what is missing in the home that comes closest, and the smallest change that fits."""
    # 1) what is missing
    broken = limits.broken_by(closest, spare)
    lines = [f"{name} gives {format_bytes(had)}, {format_bytes(n)} are needed" for name, (n, had) in broken.items()]
    message = f"the model does not fit with its packed weights on {closest.home}: {'; '.join(lines)}"
    computing, used = ("gpu", closest.gpu_bytes) if limits.on_gpu else ("cpu", closest.cpu_bytes)
    for_states = f"--max-{computing}-memory" in broken and spare.by_room(used)
    if for_states:
        message += f" ({format_bytes(spare.room)} for the states of the longest item, and to compute with)"
    # 2) another home, where it fits; else larger limits, in round numbers, or a model or items that need less
    other = needed(sizes, "disk", on_gpu=limits.on_gpu, one_expert=closest.one_expert, context=limits.context)
    if limits.streams and offload not in ("auto", "disk") and not limits.broken_by(other, spare):
        return BudgetError(message, "use --offload disk (or auto), which fits")
    suffix = ""
    if closest.home == "disk" and broken and sizes.layer_packed * 2 > sizes.slots:
        suffix = " (or a narrower --quant, whose layers are smaller)"
    if for_states:
        suffix += "; or fewer sublayers removed at once (--max-removed), or no very long items"
    owners = {"--max-gpu-memory": "the GPU", "--max-cpu-memory": "the machine"}
    for (name, owner), free in zip(owners.items(), limits.free or (), strict=False):
        if name in broken and broken[name][0] > free:  # no option gives what is not there
            has = f"{owner} has no more than {format_bytes(free)} free"
            return BudgetError(message, f"{has}: close other programs, or take a smaller model{suffix}")
    rounded = {name: -(-n // _STEP_BYTES) * _STEP_BYTES >> 20 for name, (n, _) in broken.items()}
    changes = " and ".join(f"{name} {mib}MiB" for name, mib in rounded.items())
    return BudgetError(message, f"the smallest change that fits: {changes}{suffix}")
