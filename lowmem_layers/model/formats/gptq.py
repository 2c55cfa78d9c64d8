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
from math import prod
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats.format import SAVED_WITH, OwnPacking, Packed, Stored, row_pieces
from lowmem_layers.model.formats.scaled import fields

BITS = (2, 3, 4, 8)

_WORD = 32
_INDEX_BYTES = 4  # of an int32 group number

# the ones that gptqmodel subtracts from the words of zero points, see `zero_points`
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
    "dynamic" settings: the first pattern that matches a module's name gives the settings of that module.
    """

    bits: int
    group_size: int
    version: int = 1
    writer: str = ""
    writer_major: int = 0
    act_order: bool | None = None
    overrides: tuple[tuple[str, GptqConfig], ...] = ()

    def of(self, module: str) -> GptqConfig:
        """Give the settings of one module."""
        return next((config for pattern, config in self.overrides if re.match(pattern, module)), self)


@dataclass(frozen=True)
class Gptq:
    """Codes and zero points in streams of bits, float16 scales; zero points are kept as bytes."""

    name: str = "gptq"
    title: str = "GPTQ"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
    scales: tuple[str, ...] = ("scales",)

    def from_config(self, about: Mapping[str, Any]) -> OwnPacking | None:
        """Read a config of auto-gptq or gptqmodel.

        Raises:
            CheckpointError: a setting has a value that no weight can be read with.
        """
        if about["quant_method"] != "gptq":
            return None
        # 1) what holds for all modules
        where = "config.json: the GPTQ config"
        bits, group_size = _checked_bits(about.get("bits"), where), _checked_group(about.get("group_size", -1), where)
        form = about.get("checkpoint_format") or about.get("format") or "gptq"
        if form not in ("gptq", "gptq_v2"):
            raise CheckpointError(f"{where} says checkpoint_format {form!r}", "gptq and gptq_v2 are read")
        if str(about.get("pack_dtype") or "int32").rpartition(".")[2] != "int32":
            raise CheckpointError(f"{where} says pack_dtype {about['pack_dtype']!r}", "words of int32 are read")
        # 2) who wrote it: `gptqmodel:7.7.0`, alone or in a list
        quantizer = (about.get("meta") or {}).get("quantizer", "")
        names = " ".join(quantizer) if isinstance(quantizer, list) else str(quantizer)
        found = re.search(r"gptqmodel(?::v?(\d+))?", names.lower())
        writer, major = ("gptqmodel", int(found[1] or 0)) if found else ("", 0)
        version = 2 if form == "gptq_v2" else 1
        config = GptqConfig(bits, group_size, version, writer, major, about.get("desc_act"))
        # 3) gptqmodel's settings by module; "-:" marks modules that were left as they are
        overrides: list[tuple[str, GptqConfig]] = []
        for pattern, changes in (about.get("dynamic") or {}).items():
            where = f"config.json: the GPTQ config for {pattern!r}"
            plain = pattern[2:] if pattern[:2] in ("+:", "-:") else pattern
            special = config
            if not pattern.startswith("-:"):
                special = replace(
                    config,
                    bits=_checked_bits(changes.get("bits", bits), where),
                    group_size=_checked_group(changes.get("group_size", group_size), where),
                    act_order=bool(changes["desc_act"]) if "desc_act" in changes else config.act_order,
                )
            try:
                re.compile(plain)
            except re.error as error:
                raise CheckpointError(
                    f"{where} is no pattern: {error}", "the checkpoint's config is damaged"
                ) from error
            overrides.append((plain, special))
        return OwnPacking(self, bits, f"GPTQ {bits}-bit", replace(config, overrides=tuple(overrides)))

    def home_bytes(self, name: str, parts: Mapping[str, Stored], settings: Any) -> int:
        """Count words, scales, a byte for each zero point, and group numbers, which older files leave out."""
        n_bytes = sum(part.n_bytes for key, part in parts.items() if key != "qzeros")
        if "scales" in parts:
            n_bytes += prod(parts["scales"].shape)
        if "g_idx" not in parts and "qweight" in parts:
            n_bytes += parts["qweight"].shape[0] * _WORD // _settings_of(name, settings).bits * _INDEX_BYTES
        return n_bytes

    def read(self, name: str, tensors: Mapping[str, torch.Tensor], settings: Any, file: str) -> Packed:
        """Take over one linear layer's tensors after checking them against the config.

        Shapes: qweight (in × bits / 32, out) and qzeros (groups, out × bits / 32) in int32, scales (groups, out),
        g_idx (in,), which older files leave out. The dense weight is (out, in).

        Raises:
            CheckpointError: a tensor is missing, or contradicts the config's bits or group size, or another tensor.
        """
        config, stem = _settings_of(name, settings), f"{file}: {name.removesuffix('.weight')}"
        # 1) all there, and of the shapes that the config asks for
        missing = [part for part in ("qweight", "qzeros", "scales") if part not in tensors]
        if missing:
            raise CheckpointError(f"{stem} lacks {', '.join(missing)}", "the checkpoint is incomplete")
        qweight, qzeros, scales = (tensors[part] for part in ("qweight", "qzeros", "scales"))
        inputs, outputs = qweight.shape[0] * _WORD // config.bits, qweight.shape[1]
        size = inputs if config.group_size <= 0 else config.group_size
        groups = -(-inputs // size)
        in_order = torch.arange(inputs) // size  # (in,)
        g_idx = tensors.get("g_idx", in_order.int())
        for part, found, expected in (
            ("qzeros", qzeros, (groups, outputs * config.bits // _WORD)),
            ("scales", scales, (groups, outputs)),
            ("g_idx", g_idx, (inputs,)),
        ):
            if tuple(found.shape) != expected:
                raise CheckpointError(
                    f"{stem}.{part} has shape {tuple(found.shape)}, but {config.bits} bits in groups of"
                    f" {config.group_size} ask for {expected}",
                    "the checkpoint's quantisation config contradicts its tensors",
                )
        # 2) groups that exist, in an order that the config does not deny
        if config.act_order is False and not torch.equal(g_idx.long(), in_order):
            raise CheckpointError(
                f"{stem}.g_idx is not in the order of groups of {size}, but the config says desc_act: false",
                "the checkpoint's quantisation config contradicts its tensors",
            )
        if int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
            raise CheckpointError(
                f"{stem}.g_idx names group {int(g_idx.max())} of {groups}", "the checkpoint is damaged"
            )
        zeros = zero_points(qzeros, config).to(torch.uint8)  # (groups, out)
        parts = {"qweight": qweight, "zeros": zeros, "scales": scales, "g_idx": g_idx}
        return Packed(self, (outputs, inputs), parts, {"bits": config.bits})

    def rows(self, packed: Packed, start: int, stop: int) -> Packed:
        """Cut output rows out: columns of what is stored. Shapes: `start` to `stop` of the dense weight's rows."""
        parts = {name: part if name == "g_idx" else part[:, start:stop] for name, part in packed.parts.items()}
        return Packed(self, (stop - start, packed.shape[-1]), parts, packed.settings)

    def unpack(self, packed: Packed, out: torch.Tensor) -> None:
        """Compute scale × (code − zero) for each input's group in float32, and round once to `out`'s dtype."""
        group = packed.parts["g_idx"].long()  # (in,)
        for piece, there in row_pieces(packed, out):
            codes = fields(piece.parts["qweight"].T, int(piece.settings["bits"]))  # (out, in)
            zeros = piece.parts["zeros"].T.int()[:, group]  # (out, in)
            there.copy_((codes - zeros).float().mul_(piece.parts["scales"].T.float()[:, group]))
            del codes, zeros  # not to be held while the next piece is unpacked


GPTQ = Gptq()


def zero_points(qzeros: torch.Tensor, config: GptqConfig) -> torch.Tensor:
    """Unpack the zero points. Shapes: (groups, out × bits / 32) words give (groups, out).

    Version 1 stores zero − 1. gptqmodel subtracts the ones from whole words (before its version 7, in three-bit files,
    from other bits than those where the fields start), so only adding the same words again undoes it.
    """
    if config.version == 1 and config.writer == "gptqmodel" and (config.bits != 3 or config.writer_major < 7):
        ones = torch.tensor(_GPTQMODEL_ONES[config.bits], device=qzeros.device)
        words = qzeros.long() + ones.repeat(qzeros.shape[-1] // len(ones))
        wrapped = ((words + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)  # as 32-bit addition does
        return fields(wrapped.int(), config.bits)
    zeros = fields(qzeros, config.bits)
    return (zeros + 1) & ((1 << config.bits) - 1) if config.version == 1 else zeros


def _settings_of(name: str, settings: Any) -> GptqConfig:
    """Take the settings of the module whose weight is called `name` out of the checkpoint's."""
    if not isinstance(settings, GptqConfig):
        raise CheckpointError(f"{name} is packed by GPTQ, but config.json does not say so", SAVED_WITH)
    return settings.of(name.removesuffix(".weight"))


def _checked_bits(bits: Any, where: str) -> int:
    if isinstance(bits, bool) or bits not in BITS:
        raise CheckpointError(f"{where} says {bits!r} bits", f"GPTQ comes in {', '.join(map(str, BITS))} bits")
    return int(bits)


def _checked_group(size: Any, where: str) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size == 0 or size < -1:
        raise CheckpointError(f"{where} says group_size {size!r}", "a group has a positive size, or −1 for all inputs")
    return size
