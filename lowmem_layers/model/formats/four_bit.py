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
_SERIAL_NUMBERS = 1 << 14  # torch computes so few in the calling thread, and they stay in its cache


def pack(weight: torch.Tensor, quant_type: str = "nf4", *, block_size: int = 64, double_quant: bool = False) -> Packed:
    """Quantise the weight flat, in blocks of `block_size` numbers that share one scale.

    Shapes: weight of n numbers gives codes (n / 2, 1) in uint8 and absmax (n / block_size,).
    """
    flat = weight.detach().reshape(-1)
    if quant_type == "nf4" and flat.device.type == "cpu" and not double_quant and flat.numel() % block_size == 0:
        return _pack_nf4(weight, flat, block_size)
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
        parts["nested_offset"] = state.offset.reshape(1).float()
        settings["nested_block_size"] = state.state2.blocksize
    return Packed(NAME, tuple(weight.shape), parts, settings)


def _pack_nf4(weight: torch.Tensor, flat: torch.Tensor, block_size: int) -> Packed:
    """Quantise as bitsandbytes does, bit for bit, in one thread and in cache.

    Its own function searches the table with all threads, which wait for each other thousands of times a layer: on a
    machine that others use too, many times slower.
    """
    table = functional().quantize_4bit(flat[:block_size], blocksize=block_size, quant_type="nf4")[1].code
    bounds = ((table[:-1] + table[1:]) / 2).tolist()
    codes = torch.empty(flat.numel() // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(flat.numel() // block_size)
    step = max(1, _SERIAL_NUMBERS // block_size) * block_size
    for start in range(0, flat.numel(), step):
        blocks = flat[start : start + step].float().view(-1, block_size)
        largest = blocks.abs().amax(dim=1)
        scaled = (blocks * (1.0 / largest.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1).view(-1)
        above, count = torch.empty_like(scaled), torch.zeros_like(scaled)
        for bound in bounds:
            count += torch.gt(scaled, bound, out=above)  # into floats: several times as fast as into bools
        code = count.to(torch.uint8)
        codes[start // 2 : (start + len(scaled)) // 2, 0] = (code[::2] << 4) | code[1::2]
        absmax[start // block_size : start // block_size + len(largest)] = largest
    parts = {"weight": codes, "absmax": absmax, "quant_map": table}
    return Packed(NAME, tuple(weight.shape), parts, {"quant_type": "nf4", "block_size": block_size})


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
        parts["nested_offset"] = torch.tensor([state["nested_offset"]])
        settings["nested_block_size"] = state["nested_blocksize"]
    return Packed(NAME, tuple(state["shape"]), parts, settings)


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut rows out, with the whole blocks they lie in; `skip` counts the numbers in front of the first row.

    Shapes: of all leading dimensions taken together, `start` to `stop`.
    """
    width, size = packed.shape[-1], int(packed.settings["block_size"])
    skip = int(packed.settings.get("skip", 0))
    first = (skip + start * width) // size
    last = -(-(skip + stop * width) // size)
    codes = packed.parts["weight"].view(torch.uint8).reshape(-1)[first * size // 2 : last * size // 2]
    parts = {"weight": codes, "absmax": _absmax(packed)[first:last], "quant_map": packed.parts["quant_map"]}
    skip += start * width - first * size
    settings = {"quant_type": packed.settings["quant_type"], "block_size": size, "skip": skip}
    return Packed(NAME, (stop - start, width), parts, settings)


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Look each code up, times its block's scale, into `out`'s dtype."""
    codes = packed.parts["weight"].view(torch.uint8).reshape(-1, 1)
    skip = int(packed.settings.get("skip", 0))
    state = functional().QuantState(
        absmax=_absmax(packed),
        shape=torch.Size((2 * codes.numel(),)),
        code=packed.parts["quant_map"],
        blocksize=int(packed.settings["block_size"]),
        quant_type=str(packed.settings["quant_type"]),
        dtype=out.dtype,
    )
    out.copy_(functional().dequantize_4bit(codes, state).view(-1)[skip : skip + out.numel()].view(packed.shape))


def plain_scales(packed: Packed) -> Packed:
    """Unpack doubly quantised scales (they are a hundredth of the weight), so that rows can be cut out of it."""
    kept = {key: packed.settings[key] for key in ("quant_type", "block_size")}
    parts = {key: packed.parts[key] for key in ("weight", "quant_map")} | {"absmax": _absmax(packed)}
    return Packed(NAME, packed.shape, parts, kept)


def _absmax(packed: Packed) -> torch.Tensor:
    """Read each block's scale. Shapes: (blocks,) float32."""
    absmax = packed.parts["absmax"]
    if "nested_absmax" not in packed.parts:
        return absmax
    scales = functional().QuantState(
        absmax=packed.parts["nested_absmax"],
        blocksize=int(packed.settings["nested_block_size"]),
        code=packed.parts["nested_quant_map"],
        dtype=torch.float32,
    )
    return functional().dequantize_blockwise(absmax, scales) + packed.parts["nested_offset"]


def functional() -> Any:
    """Import bitsandbytes at first use, without its warning about a kernel of its modules, which are never called."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional
