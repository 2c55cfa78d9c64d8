"""Where packed weights are put so that everything fits the given memory, or a refusal that says what would fit.

Everything here is arithmetic on byte counts that are known before a weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowmem_layers.errors import BudgetError
from lowmem_layers.model.spec import Offload, format_bytes

HomeName = Literal["device", "cpu", "disk"]

_WORKSPACE_BYTES = 48 << 20  # quantising works in pieces; and what the allocator keeps
_LATER_BYTES = 96 << 20  # what a process still takes after loading: the tokenizer's tables, kernels, threads, Arrow
_RESERVED_SHARE = 8  # one eighth of the memory is left for residual states
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
    or it cannot be divided).
    """

    packed: int
    resident: int
    slots: int
    layer_packed: int
    layer_source: int
    process: int
    expert_slots: int | None = None


@dataclass(frozen=True)
class Placement:
    """A home, and the memory that the model takes there.

    Units: `gpu_bytes` and `cpu_bytes` while running, without states; `loading_bytes` of host memory at most while it is
    loaded. `one_expert`: a mixture's experts are brought into the slot one at a time.
    """

    home: HomeName
    gpu_bytes: int
    cpu_bytes: int
    loading_bytes: int
    slot_bytes: int
    staging_bytes: int
    one_expert: bool = False


def needed(sizes: ModelBytes, home: HomeName, *, on_gpu: bool, one_expert: bool = False) -> Placement:
    """Add up what a home costs on GPU and host."""
    slots = sizes.expert_slots if one_expert and sizes.expert_slots is not None else sizes.slots
    staging = 0 if home == "device" or (home == "cpu" and not on_gpu) else 2 * sizes.layer_packed
    running = sizes.resident + slots + staging
    in_ram = home == "cpu" or (home == "device" and not on_gpu)
    on_host = sizes.process + (sizes.packed if in_ram else 0)
    loading = on_host + sizes.resident + sizes.layer_source + sizes.layer_packed + _WORKSPACE_BYTES
    on_host += _LATER_BYTES
    if not on_gpu:
        return Placement(home, 0, on_host + running, loading, slots, staging, one_expert)
    on_device = running + (sizes.packed if home == "device" else 0)
    pinned = 2 * _power_of_two(sizes.layer_packed) if staging else 0
    return Placement(home, on_device, on_host + pinned, loading, slots, staging, one_expert)


def _power_of_two(n_bytes: int) -> int:
    """Round up as torch does with pinned memory."""
    return 1 << max(0, n_bytes - 1).bit_length()


def place(
    sizes: ModelBytes, offload: Offload, *, on_gpu: bool, gpu_limit: int | None, cpu_limit: int | None, share: int = 0
) -> Placement:
    """Choose the fastest home that fits: the computing device, then RAM, then disk.

    A mixture's experts are brought in one at a time only where no home leaves room for a slot that holds all of them:
    this unpacks an expert again for every batch of tokens, while streaming hides behind the computation.

    Units: bytes. One part in `share` of the computing device's memory is kept free for residual states (0: nothing is).

    Raises:
        BudgetError: none of the allowed homes fits; the message has the bytes needed and given.
    """
    homes: list[HomeName] = [home for home in _HOMES[offload] if on_gpu or home != "device"]
    homes = homes or ["cpu"]  # a CPU's own memory is RAM
    ways = (False, True) if sizes.expert_slots is not None else (False,)
    tried = [needed(sizes, home, on_gpu=on_gpu, one_expert=way) for way in ways for home in homes]
    for placement in tried:
        if not _lacking(placement, on_gpu, gpu_limit, cpu_limit, share):
            return placement
    raise _refusal(tried[-1], sizes, offload, on_gpu=on_gpu, limits=(gpu_limit, cpu_limit), share=share)


def place_with_states(
    sizes: ModelBytes, offload: Offload, *, on_gpu: bool, gpu_limit: int | None, cpu_limit: int | None
) -> Placement:
    """Choose a home that leaves an eighth of the computing device's memory for residual states.

    Raises:
        BudgetError: none of the allowed homes fits; the message has the bytes needed and given.
    """
    return place(sizes, offload, on_gpu=on_gpu, gpu_limit=gpu_limit, cpu_limit=cpu_limit, share=_RESERVED_SHARE)


def _lacking(
    placement: Placement, on_gpu: bool, gpu_limit: int | None, cpu_limit: int | None, share: int
) -> dict[str, tuple[int, int]]:
    """List the limits that are broken: option name to bytes needed and given."""
    gpu = _with_states(placement.gpu_bytes, share)
    cpu = max(placement.loading_bytes, placement.cpu_bytes if on_gpu else _with_states(placement.cpu_bytes, share))
    broken = {}
    if on_gpu and gpu_limit is not None and gpu > gpu_limit:
        broken["--max-gpu-memory"] = (gpu, gpu_limit)
    if cpu_limit is not None and cpu > cpu_limit:
        broken["--max-cpu-memory"] = (cpu, cpu_limit)
    return broken


def _with_states(n_bytes: int, share: int) -> int:
    """Give the least memory of which so many bytes leave one part in `share` free."""
    return n_bytes if not share else -(-n_bytes * share // (share - 1))


def _refusal(
    closest: Placement, sizes: ModelBytes, offload: Offload, *, on_gpu: bool, limits: tuple[int | None, int | None],
    share: int,
) -> BudgetError:  # fmt: skip
    broken = _lacking(closest, on_gpu, *limits, share)
    what = "; ".join(
        f"{name} gives {format_bytes(had)}, {format_bytes(n)} are needed" for name, (n, had) in broken.items()
    )
    message = f"the model does not fit with its packed weights on {closest.home}: {what}"
    other = needed(sizes, "disk", on_gpu=on_gpu, one_expert=closest.one_expert)
    if offload not in ("auto", "disk") and not _lacking(other, on_gpu, *limits, share):
        return BudgetError(message, "use --offload disk (or auto), which fits")
    if closest.home == "disk" and broken and sizes.layer_packed * 2 > sizes.slots:
        suffix = " (or a narrower --quant, whose layers are smaller)"
    else:
        suffix = ""
    changes = " and ".join(f"{name} {_rounded(need)}" for name, (need, _) in broken.items())
    return BudgetError(message, f"the smallest change that fits: {changes}{suffix}")


def _rounded(n_bytes: int) -> str:
    return f"{-(-n_bytes // _STEP_BYTES) * _STEP_BYTES // (1 << 20)}MiB"
