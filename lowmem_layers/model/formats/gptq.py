"""GPTQ weights as auto-gptq and gptqmodel write them, unpacked without either package.

`qweight` packs the codes of one column down the input dimension, `qzeros` the zero points of one group along the output
dimension, both as little-endian streams of `bits`-wide fields in 32-bit words (so three-bit fields straddle words);
`scales` has one row a group and `g_idx` names each input's group, in any order ("act-order"). Version 1 of the format
stores each zero point minus one. Source: Frantar et al., GPTQ (2022), and the file format of both packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.packed import Packed

NAME = "gptq"

BITS = (2, 3, 4, 8)
_WORD = 32

_GPTQMODEL_ONES = {
    2: (0x55555555,),
    3: (0x24924924, 0x92492492, 0x49249249),
    4: (0x11111111,),
    8: (0x01010101,),
}


@dataclass(frozen=True)
class GptqConfig:
    """What a checkpoint's quantisation config says about its GPTQ tensors.

    `group_size` is −1 for one group a column. `version` is the format's, 1 or 2; `writer` the package that saved it,
    `writer_major` its major version. `act_order` is None where the config does not say. `overrides` are gptqmodel's
    "dynamic" settings: the first pattern that matches a module's name changes the settings given with it.
    """

    bits: int
    group_size: int
    version: int = 1
    writer: str = ""
    writer_major: int = 0
    act_order: bool | None = None
    overrides: tuple[tuple[str, Mapping[str, int | bool]], ...] = ()

    def of(self, module: str) -> GptqConfig:
        """Give the settings of one module."""
        for pattern, changes in self.overrides:
            if re.match(pattern, module):
                return replace(self, overrides=(), **changes)  # pyright: ignore[reportArgumentType]
        return self


def pack(name: str, tensors: Mapping[str, torch.Tensor], config: GptqConfig) -> Packed:
    """Take over one linear layer's tensors after checking them against the config.

    Shapes: qweight (in × bits / 32, out) and qzeros (groups, out × bits / 32) in int32, scales (groups, out),
    g_idx (in,), which older files leave out. The dense weight is (out, in).

    Raises:
        CheckpointError: a tensor is missing, or contradicts the config's bits or group size, or another tensor.
    """
    missing = [part for part in ("qweight", "qzeros", "scales") if part not in tensors]
    if missing:
        raise CheckpointError(f"{name} lacks {', '.join(missing)}", "the checkpoint is incomplete")
    qweight, qzeros, scales = (tensors[part] for part in ("qweight", "qzeros", "scales"))
    inputs, outputs = qweight.shape[0] * _WORD // config.bits, qweight.shape[1]
    size = inputs if config.group_size <= 0 else config.group_size
    groups = -(-inputs // size)
    g_idx = tensors.get("g_idx", torch.arange(inputs, dtype=torch.int32) // size)
    _check(f"{name}.qzeros", tuple(qzeros.shape), (groups, outputs * config.bits // _WORD), config)
    _check(f"{name}.scales", tuple(scales.shape), (groups, outputs), config)
    _check(f"{name}.g_idx", tuple(g_idx.shape), (inputs,), config)
    _check_order(name, g_idx, size, config)
    if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise CheckpointError(f"{name}.g_idx names group {int(g_idx.max())} of {groups}", "the checkpoint is damaged")
    zeros = zero_points(qzeros, config).to(torch.uint8)
    parts = {"qweight": qweight, "zeros": zeros, "scales": scales, "g_idx": g_idx}
    return Packed(NAME, (outputs, inputs), parts, {"bits": config.bits})


def rows(packed: Packed, start: int, stop: int) -> Packed:
    """Cut output rows out: columns of what is stored. Shapes: `start` to `stop` of the dense weight's rows."""
    parts = {name: part if name == "g_idx" else part[:, start:stop] for name, part in packed.parts.items()}
    return Packed(NAME, (stop - start, packed.shape[-1]), parts, packed.settings)


def unpack(packed: Packed, out: torch.Tensor) -> None:
    """Compute scale × (code − zero) for each input's group in float32, and round once to `out`'s dtype."""
    parts = packed.parts
    codes = fields(parts["qweight"].T, int(packed.settings["bits"]))  # (out, in)
    group = parts["g_idx"].long()
    zeros = parts["zeros"].T.int()[:, group]
    out.copy_((codes - zeros).float().mul_(parts["scales"].T.float()[:, group]))


def zero_points(qzeros: torch.Tensor, config: GptqConfig) -> torch.Tensor:
    """Unpack the zero points. Shapes: (groups, out × bits / 32) words give (groups, out).

    Version 1 stores zero − 1. gptqmodel subtracts the ones from whole words (before its version 7, in three-bit files,
    from other bits than those where the fields start), so only adding the same words again undoes it.
    """
    if config.version == 1 and config.writer == "gptqmodel" and (config.bits != 3 or config.writer_major < 7):
        ones = torch.tensor(_GPTQMODEL_ONES[config.bits], device=qzeros.device)
        words = qzeros.long() + ones.repeat(qzeros.shape[-1] // len(ones))
        return fields(_as_int32(words), config.bits)
    zeros = fields(qzeros, config.bits)
    return (zeros + 1) & ((1 << config.bits) - 1) if config.version == 1 else zeros


def _as_int32(words: torch.Tensor) -> torch.Tensor:
    """Wrap around as 32-bit addition does."""
    return (((words + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)).int()


def fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Cut the last dimension's stream of 32-bit words into fields of `bits` bits, lowest bits first.

    Shapes: (rows, n × bits / 32) int32 words give (rows, n) int32 fields.
    """
    if _WORD % bits == 0:
        shifts = torch.arange(0, _WORD, bits, dtype=torch.int32, device=words.device)
        return ((words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)
    start = torch.arange(0, _WORD * bits, bits, device=words.device)  # the bit at which each of 32 fields starts
    run = words.reshape(*words.shape[:-1], -1, bits).long() & 0xFFFFFFFF
    low = run[..., start // _WORD] >> (start % _WORD)
    high = run[..., ((start + bits - 1) // _WORD)] << (_WORD - start % _WORD)
    straddles = start % _WORD + bits > _WORD
    return (torch.where(straddles, low | high, low) & ((1 << bits) - 1)).flatten(-2).int()


def _check_order(name: str, g_idx: torch.Tensor, size: int, config: GptqConfig) -> None:
    if config.act_order is False and not torch.equal(g_idx.long(), torch.arange(len(g_idx)) // size):
        raise CheckpointError(
            f"{name}.g_idx is not in the order of groups of {size}, but the config says desc_act: false",
            "the checkpoint's quantisation config contradicts its tensors",
        )


def _check(name: str, found: tuple[int, ...], expected: tuple[int, ...], config: GptqConfig) -> None:
    if found != expected:
        raise CheckpointError(
            f"{name} has shape {found}, but {config.bits} bits in groups of {config.group_size} ask for {expected}",
            "the checkpoint's quantisation config contradicts its tensors",
        )
