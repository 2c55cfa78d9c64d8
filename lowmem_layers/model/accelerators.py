"""What a run needs to know of each kind of computing device: the one place where CPU, CUDA, MPS and XPU differ.

CUDA is what the engine was made for. Apple's MPS and Intel's XPU are accepted, with the weights at home on the device
and without float64 there; nobody has run `benchmarks.gpu` on one yet, so a run says that they are untested.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from lowmem_layers.errors import UsageError


@dataclass(frozen=True)
class DeviceKind:
    """One kind of device, by torch's name.

    `streams`: packed weights may live elsewhere and be copied beside the computation. `has_float64`: numbers of 64 bits
    are computed there. `untested`: nobody has compared a run on such a device with one on a CPU.
    """

    name: str
    maker: str
    streams: bool
    has_float64: bool
    untested: bool = False


_KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind("cpu", "", streams=True, has_float64=True),
        DeviceKind("cuda", "NVIDIA's or AMD's", streams=True, has_float64=True),
        DeviceKind("mps", "Apple's", streams=False, has_float64=False, untested=True),
        DeviceKind("xpu", "Intel's", streams=False, has_float64=False, untested=True),
    )
}


def kind_of(device: torch.device) -> DeviceKind:
    """Look up what is known of a device's kind."""
    return _KINDS[device.type]


def is_gpu(device: torch.device) -> bool:
    """Tell whether something else than the CPU computes."""
    return device.type != "cpu"


def is_seen(name: str) -> bool:
    """Tell whether torch sees a device of this kind here."""
    seen = {"cpu": lambda: True, "mps": torch.backends.mps.is_available}
    return bool(seen.get(name, lambda: torch.get_device_module(name).is_available())())


def check_offload(device: torch.device, offload: str) -> None:
    """Refuse homes from which nothing can be brought to a device.

    Raises:
        UsageError: packed weights were asked to live in RAM or on disk.
    """
    if not kind_of(device).streams and offload in ("cpu", "disk"):
        raise UsageError(
            f"--offload {offload} with --device {device.type}: weights cannot be brought in layer by layer there",
            "leave --offload away: the packed weights then live on the device",
        )


def untested_note(device: torch.device) -> str:
    """Say that nobody has tried such a device; nothing where somebody has."""
    if not kind_of(device).untested:
        return ""
    return (
        f"--device {device.type} is untested: until somebody has run python -m benchmarks.gpu --device {device.type}, "
        "compare a few items with --device cpu"
    )


def name_of(device: torch.device) -> str:
    """Name the card, as its driver does where it can be asked."""
    if device.type == "mps":
        return "Apple GPU"
    return torch.get_device_module(device).get_device_name(device)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Count the bytes that are free on a device, and all that it has; of Apple's, which shares the machine's memory,
    what the system recommends to take at most.
    """
    if device.type == "cpu":
        memory = psutil.virtual_memory()
        return memory.available, memory.total
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return max(0, min(most - torch.mps.driver_allocated_memory(), psutil.virtual_memory().available)), most
    return torch.get_device_module(device).mem_get_info(device)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "mps":
        torch.mps.synchronize()  # there is one device, so it takes none
    elif is_gpu(device):
        torch.get_device_module(device).synchronize(device)


def release_cached(device: torch.device) -> None:
    """Hand memory that torch keeps for later back to a device."""
    if is_gpu(device):
        torch.get_device_module(device).empty_cache()


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Widen numbers to 64 bits: where they are, or on the CPU where their device has no such numbers."""
    return tensor.double() if kind_of(tensor.device).has_float64 else tensor.cpu().double()
