"""Which device and which compute dtype a request means on this machine."""

from __future__ import annotations

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.spec import DeviceName, DtypeName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: DeviceName) -> torch.device:
    """Take `auto` as the GPU if torch sees one; refuse `cuda` where it sees none.

    Raises:
        ModelError: `cuda` was asked for and torch sees no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        built = torch.version.cuda or "none: this is a CPU build"
        raise ModelError(
            f"--device cuda, but torch {torch.__version__} sees no GPU (built for CUDA {built})",
            "use --device cpu, or install a CUDA build of torch and check the driver with nvidia-smi",
        )
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Take `auto` as bfloat16 where the hardware multiplies it natively, else as float32."""
    if name != "auto":
        return _DTYPES[name]
    return torch.bfloat16 if has_native_bfloat16(device) else torch.float32


def has_native_bfloat16(device: torch.device) -> bool:
    """Ask the GPU, or the CPU's flags (AVX512-BF16 or AMX), whether bfloat16 products run natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we accept
    return any(capabilities.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as the options do: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def use_threads(n_threads: int | None) -> int:
    """Compute with this many CPU threads (None: torch's own choice), and say how many that are."""
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    return torch.get_num_threads()
