"""Four-bit weights in NF4 or FP4, with and without doubly quantised scales, by bitsandbytes' functions.

Never its modules: on CPUs with AVX512-BF16 the first forward of a `Linear4bit` repacks its weights, and what
`dequantize_4bit` returns afterwards is garbage. Source of the number format: Dettmers et al., QLoRA (2023), section 3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.packed import Packed

NAME = "four_bit"

_CHUNK_NUMBERS = 1 << 18  # on the CPU bitsandbytes takes up to 100 bytes a number while it quantises


def pack(weight: torch.Tensor, quant_type: str = "nf4", *, block_size: int = 64, double_quant: bool = False) -> Packed:
    """Quantise the weight flat, in blocks of `block_size` numbers that share one scale.

    Shapes: weight of n numbers gives codes (n / 2, 1) in uint8 and absmax (n / block_size,).
    """
    flat = weight.detach().reshape(-1)
    chunk = flat.numel() if double_quant else _CHUNK_NUMBERS  # doubly quantised scales share their mean
    pieces = [
        functional().quantize_4bit(piece, blocksize=block_size, compress_statistics=double_quant, quant_type=quant_type)
        for piece in flat.split(chunk)
    ]
    codes, state = torch.cat([codes for codes, _ in pieces]), pieces[0][1]
    absmax = torch.cat([state.absmax for _, state in pieces])
    parts = {"weight": codes, "absmax": absmax, "quant_map": state.code}
    settings: dict[str, str | int | float | bool] = {"quant_type": quant_type, "block_size": block_size}
    if double_quant:
        parts |= {"nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code}
        settings |= {"nested_block_size": state.state2.blocksize, "nested_offset": float(state.offset)}
    return Packed(NAME, tuple(weight.shape), parts, settings)


def from_bitsandbytes(name: str, tensors: Mapping[str, torch.Tensor]) -> Packed:
    """Take over a 4-bit weight as transformers saves it.

    `tensors` holds its `weight`, `absmax`, `quant_map` and `quant_state.bitsandbytes__*`, perhaps `nested_*`.

    Raises:
        CheckpointError: a part of the weight is missing.
    """
    packed_state = [key for key in tensors if key.startswith("quant_state.bitsandbytes__")]
    missing = [key for key in ("weight", "absmax", "quant_map") if key not in tensors]
    if missing or not packed_state:
        raise CheckpointError(
            f"{name}: the 4-bit weight lacks {', '.join(missing) or 'its quant_state'}",
            "the checkpoint is incomplete; save or download it again",
        )
    state = json.loads(bytes(tensors[packed_state[0]].tolist()))
    parts = {key: tensors[key] for key in ("weight", "absmax", "quant_map")}
    settings: dict[str, str | int | float | bool] = {
        "quant_type": state["quant_type"],
        "block_size": state["blocksize"],
    }
    if "nested_absmax" in tensors:
        parts |= {key: tensors[key] for key in ("nested_absmax", "nested_quant_map")}
        settings |= {"nested_block_size": state["nested_blocksize"], "nested_offset": state["nested_offset"]}
    return Packed(NAME, tuple(state["shape"]), parts, settings)


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Look each code up, times its block's scale, into `out`'s dtype."""
    codes = packed.parts["weight"].view(torch.uint8).reshape(-1, 1)
    out.copy_(functional().dequantize_4bit(codes, _state(packed, out.dtype)).view(packed.shape))


def functional() -> Any:
    """Import bitsandbytes at first use, without its warning about a kernel of its modules, which are never called."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional


def _state(packed: Packed, dtype: torch.dtype) -> Any:
    """Build bitsandbytes' description of the packed weight."""
    state_of = functional().QuantState
    inner = None
    offset = None
    if "nested_absmax" in packed.parts:
        inner = state_of(
            absmax=packed.parts["nested_absmax"],
            blocksize=int(packed.settings["nested_block_size"]),
            code=packed.parts["nested_quant_map"],
            dtype=torch.float32,
        )
        offset = torch.tensor(float(packed.settings["nested_offset"]), device=packed.parts["absmax"].device)
    return state_of(
        absmax=packed.parts["absmax"],
        shape=torch.Size(packed.shape),
        code=packed.parts["quant_map"],
        blocksize=int(packed.settings["block_size"]),
        quant_type=str(packed.settings["quant_type"]),
        dtype=dtype,
        offset=offset,
        state2=inner,
    )
