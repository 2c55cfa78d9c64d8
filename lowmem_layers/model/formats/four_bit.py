"""Four-bit weights in NF4 or FP4, with and without doubly quantised scales, by bitsandbytes' functions.

Never its modules: on CPUs with AVX512-BF16 the first forward of a `Linear4bit` repacks its weights, and what
`dequantize_4bit` returns afterwards is garbage. Source of the number format: Dettmers et al., QLoRA (2023), section 3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import OwnPacking, Packed, Stored, row_pieces
from lowmem_layers.model.formats.int8 import BITSANDBYTES

_BLOCK_NUMBERS = 64  # numbers that share a scale, unless a checkpoint says otherwise
_TABLE_BYTES = 16 * 4  # sixteen float32 levels
_CHUNK_NUMBERS = 1 << 18  # on the CPU bitsandbytes takes up to 100 bytes a number while it quantises
_SERIAL_NUMBERS = 1 << 14  # torch computes so few in the calling thread, and they stay in its cache


@dataclass(frozen=True)
class FourBit:
    """Two numbers a byte, one scale a block of the flat weight, a table of sixteen levels.

    In checkpoints as transformers saves what bitsandbytes packed: the packed numbers are called `weight`, and
    `quant_state.bitsandbytes__…` holds the shape and the settings as JSON in bytes.
    """

    name: str = "four_bit"
    title: str = "bitsandbytes 4-bit"
    parts: tuple[str, ...] = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4",
    )  # fmt: skip
    scales: tuple[str, ...] = ("absmax", "nested_absmax")

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of bitsandbytes that says four bits."""
        if about["quant_method"] not in BITSANDBYTES or not (about.get("load_in_4bit") or about.get("_load_in_4bit")):
            return None
        return OwnPacking(self, 4, f"bitsandbytes {about.get('bnb_4bit_quant_type', 'fp4')}")

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count all parts but the state, which becomes settings."""
        return sum(part.n_bytes for key, part in parts.items() if not key.startswith("quant_state"))

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over a weight with the scales as they are saved, quantised themselves or not.

        Raises:
            CheckpointError: a part of the weight is missing.
        """
        states = [key for key in tensors if key.startswith("quant_state")]
        missing = [key for key in ("weight", "absmax", "quant_map") if key not in tensors]
        if missing or not states:
            raise CheckpointError(
                f"{file}: {name}: the 4-bit weight lacks {', '.join(missing) or 'its quant_state'}",
                "the checkpoint is incomplete; save or download it again",
            )
        state = json.loads(bytes(tensors[states[0]].tolist()))
        parts = {key: tensors[key] for key in ("weight", "absmax", "quant_map")}
        kept: dict[str, str | int | float | bool] = {
            "quant_type": state["quant_type"],
            "block_size": state["blocksize"],
        }
        if "nested_absmax" in tensors:
            parts |= {key: tensors[key] for key in ("nested_absmax", "nested_quant_map")}
            parts["nested_offset"] = torch.tensor([state["nested_offset"]])
            kept["nested_block_size"] = state["nested_blocksize"]
        return Packed(self, tuple(state["shape"]), parts, kept)

    def packed_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Count half a byte a number, four bytes a block and the table."""
        numbers = prod(shape)
        return -(-numbers // 2) + -(-numbers // _BLOCK_NUMBERS) * 4 + _TABLE_BYTES

    def pack(
        self, weight: torch.Tensor, quant_type: str = "nf4", *, block_size: int = _BLOCK_NUMBERS,
        double_quant: bool = False,
    ) -> Packed:  # fmt: skip
        """Quantise the weight flat, in blocks of `block_size` numbers that share one scale.

        Shapes: weight of n numbers gives codes (n / 2, 1) in uint8 and absmax (n / block_size,).
        """
        flat = weight.detach().reshape(-1)  # (n,)
        if quant_type == "nf4" and flat.device.type == "cpu" and not double_quant and flat.numel() % block_size == 0:
            return self._pack_nf4(weight, flat, block_size)
        chunk = flat.numel() if double_quant else _CHUNK_NUMBERS  # doubly quantised scales share their mean
        pieces = [
            functional().quantize_4bit(
                piece, blocksize=block_size, compress_statistics=double_quant, quant_type=quant_type
            )
            for piece in flat.split(chunk)
        ]
        codes, state = torch.cat([codes for codes, _ in pieces]), pieces[0][1]  # (n / 2, 1)
        absmax = torch.cat([state.absmax for _, state in pieces])  # (n / block_size,)
        parts = {"weight": codes, "absmax": absmax, "quant_map": state.code}
        settings: dict[str, str | int | float | bool] = {"quant_type": quant_type, "block_size": block_size}
        if double_quant:
            parts |= {"nested_absmax": state.state2.absmax, "nested_quant_map": state.state2.code}
            parts["nested_offset"] = state.offset.reshape(1).float()
            settings["nested_block_size"] = state.state2.blocksize
        return Packed(self, tuple(weight.shape), parts, settings)

    def _pack_nf4(self, weight: torch.Tensor, flat: torch.Tensor, block_size: int) -> Packed:
        """Quantise as bitsandbytes does, bit for bit, in one thread and in cache.

        Its own function searches the table with all threads, which wait for each other thousands of times a layer: on
        a machine that others use too, many times slower.
        """
        table = functional().quantize_4bit(flat[:block_size], blocksize=block_size, quant_type="nf4")[1].code  # (16,)
        bounds = ((table[:-1] + table[1:]) / 2).tolist()
        codes = torch.empty(flat.numel() // 2, 1, dtype=torch.uint8)
        absmax = torch.empty(flat.numel() // block_size)
        step = max(1, _SERIAL_NUMBERS // block_size) * block_size
        for start in range(0, flat.numel(), step):
            # 1) scale each block to −1 … 1
            blocks = flat[start : start + step].float().view(-1, block_size)  # (blocks, block_size)
            largest = blocks.abs().amax(dim=1)  # (blocks,)
            scaled = (blocks * (1.0 / largest.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1).view(-1)
            # 2) a number's code is how many of the bounds between two levels lie below it
            above, count = torch.empty_like(scaled), torch.zeros_like(scaled)
            for bound in bounds:
                count += torch.gt(scaled, bound, out=above)  # into floats: several times as fast as into bools
            code = count.to(torch.uint8)
            # 3) two codes a byte, the first one in the high half
            codes[start // 2 : (start + len(scaled)) // 2, 0] = (code[::2] << 4) | code[1::2]
            absmax[start // block_size : start // block_size + len(largest)] = largest
        parts = {"weight": codes, "absmax": absmax, "quant_map": table}
        return Packed(self, tuple(weight.shape), parts, {"quant_type": "nf4", "block_size": block_size})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut rows out, with the whole blocks they lie in and with scales that are no longer quantised themselves.

        The setting `skip` counts the numbers in front of the first row.

        Shapes: of all leading dimensions taken together, `start` to `stop`.
        """
        width, size = packed.shape[-1], int(packed.settings["block_size"])
        skip = int(packed.settings.get("skip", 0))
        first = (skip + start * width) // size  # blocks
        last = -(-(skip + stop * width) // size)
        absmax = packed.parts["absmax"]  # (blocks,) float32, or uint8 where they are quantised themselves
        if "nested_absmax" in packed.parts:
            nested = functional().QuantState(
                absmax=packed.parts["nested_absmax"],
                blocksize=int(packed.settings["nested_block_size"]),
                code=packed.parts["nested_quant_map"],
                dtype=torch.float32,
            )
            absmax = functional().dequantize_blockwise(absmax, nested) + packed.parts["nested_offset"]
        codes = packed.parts["weight"].view(torch.uint8).reshape(-1)[first * size // 2 : last * size // 2]
        parts = {"weight": codes, "absmax": absmax[first:last], "quant_map": packed.parts["quant_map"]}
        skip += start * width - first * size
        settings = {"quant_type": packed.settings["quant_type"], "block_size": size, "skip": skip}
        return Packed(self, (stop - start, width), parts, settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Look each code up, times its block's scale, into `out`'s dtype."""
        # All rows at once first: this unpacks doubly quantised scales (a hundredth of the weight) once, not a piece.
        whole = self.rows(packed, 0, prod(packed.shape[:-1]))
        for piece, there in row_pieces(whole, out):
            codes = piece.parts["weight"].reshape(-1, 1)  # (bytes, 1)
            state = functional().QuantState(
                absmax=piece.parts["absmax"],
                shape=torch.Size((2 * codes.numel(),)),
                code=piece.parts["quant_map"],
                blocksize=int(piece.settings["block_size"]),
                quant_type=str(piece.settings["quant_type"]),
                dtype=there.dtype,
            )
            mine = slice(int(piece.settings["skip"]), int(piece.settings["skip"]) + there.numel())  # of whole blocks
            there.copy_(functional().dequantize_4bit(codes, state).view(-1)[mine].view(there.shape))


FOUR_BIT = FourBit()


def functional() -> Any:
    """Import bitsandbytes at first use, without its warning about a kernel of its modules, which are never called."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional
