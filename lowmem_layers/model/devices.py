"""Which device and which compute dtype a request means on this machine."""

from __future__ import annotations

from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.accelerators import device_memory, is_gpu, is_seen, kind_of, name_of
from lowmem_layers.model.gpu import device_overhead_bytes, driver_version, prepare_gpu
from lowmem_layers.model.spec import DeviceName, DtypeName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: DeviceName) -> torch.device:
    """Take `auto` as the CUDA GPU if torch sees one, else as the CPU; refuse a device that torch does not see.

    Raises:
        ModelError: torch sees no device of the kind that was asked for.
    """
    if name in ("mps", "xpu"):
        if not is_seen(name):
            raise ModelError(
                f"--device {name}, but torch {torch.__version__} sees no GPU of {kind_of(torch.device(name)).maker}",
                "use --device cpu, or install a build of torch for that GPU",
            )
        return torch.device(name)
    if name != "cpu":
        prepare_gpu()
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        built = torch.version.cuda or "none: this is a CPU build"
        raise ModelError(
            f"--device cuda, but torch {torch.__version__} sees no GPU (built for CUDA {built})",
            "use --device cpu, or install a CUDA build of torch and check the driver with nvidia-smi",
        )
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


def resolve_dtype(name: DtypeName, device: torch.device) -> torch.dtype:
    """Take `auto` as bfloat16 where the hardware multiplies it natively; else as float16 on a GPU, float32 on a CPU."""
    if name != "auto":
        return _DTYPES[name]
    if has_native_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if is_gpu(device) else torch.float32


def settle_arithmetic(device: torch.device) -> dict[str, str]:
    """Switch off whatever trades a GPU's accuracy for speed, and cuDNN's attention; say so for the run's record.

    Sums of 16-bit products stay in float32, float32 products are not made of shorter ones (TF32). cuDNN builds its
    attention kernel anew for every shape, which takes longer than it saves where shapes are many; the
    memory-efficient one takes any mask. On a CPU nothing is to be settled.
    """
    if device.type != "cuda":
        return {}
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    return {"tf32": "off", "16-bit sums": "float32", "masked attention": "memory-efficient, math"}


def settle_for_models(device: torch.device) -> dict[str, str]:
    """Settle a GPU's arithmetic and transformers' attention, before a model computes; say so for the run's record."""
    _settle_attention(device)
    return settle_arithmetic(device)


def _settle_attention(device: torch.device) -> None:
    """Let transformers copy keys and values that all heads share, for CUDA's memory-efficient attention.

    It repeats a single head as a view, and of such the kernel reads the mask of a row's last token in the wrong place
    where the row has 1, 33, 65 … tokens (pytorch/pytorch, issue 191937; torch up to 2.13 at least). The copies are what
    placement counts. (Gemma 3 with 1B, StarCoder.)
    """
    if device.type != "cuda":
        return
    from transformers.integrations import sdpa_attention

    repeat = sdpa_attention.repeat_kv
    if getattr(repeat, "copies", False):
        return

    def repeat_and_copy(hidden_states: torch.Tensor, n_rep: int) -> torch.Tensor:
        repeated = repeat(hidden_states, n_rep)  # (B, heads, T, D)
        return repeated.contiguous() if repeated.device.type == "cuda" and not repeated.stride(1) else repeated

    repeat_and_copy.copies = True  # pyright: ignore[reportFunctionMemberAccess]
    sdpa_attention.repeat_kv = repeat_and_copy


def describe_gpu(device: torch.device) -> dict[str, str]:
    """Name a GPU, its capability and the versions of what runs on it, for the run's record; nothing of a CPU."""
    if not is_gpu(device):
        return {}
    if device.type != "cuda":
        return {"name": name_of(device), "memory_bytes": str(device_memory(device)[1]), "untested": "true"}
    properties = torch.cuda.get_device_properties(device)
    found = {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    found["memory_bytes"] = str(properties.total_memory)
    found["context_bytes"] = str(device_overhead_bytes(device))
    if torch.version.hip is not None:
        return {**found, "rocm": torch.version.hip}
    if driver := driver_version():
        found["driver"] = driver
    return {**found, "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}


def describe_kernels(config: Any, *, has_experts: bool) -> dict[str, str]:
    """Name transformers' implementations of attention and, in a mixture, of experts, as its config does."""
    attention = getattr(config, "_attn_implementation", None)
    experts = getattr(config, "_experts_implementation", None) if has_experts else None
    return {what: str(name) for what, name in {"attention": attention, "experts": experts}.items() if name}


def has_native_bfloat16(device: torch.device) -> bool:
    """Ask the GPU, or the CPU's flags (AVX512-BF16 or AMX), whether bfloat16 products run natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if is_gpu(device):  # Apple's first chips imitate it, and Intel's cards differ
        return False
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
