"""How a checkpoint's weights are packed already, and how the request wants them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.formats import Packed, dense, four_bit, int8
from lowmem_layers.model.formats.gptq import BITS, GptqConfig
from lowmem_layers.model.spec import Quant

_READ = "plain, bitsandbytes (4-bit, 8-bit), GPTQ and GGUF checkpoints are read"
_WIDTH: Mapping[Quant, int] = {"4bit": 4, "8bit": 8}


@dataclass(frozen=True)
class OwnPacking:
    """The packing a checkpoint comes in. `method` is bitsandbytes, gptq or gguf; `label` names it for people."""

    method: str
    bits: int
    label: str
    gptq: GptqConfig | None = None


@dataclass(frozen=True)
class Recipe:
    """What is done with each decoder layer's linear weights: kept as they are packed, or packed as `target`.

    `target` is none (dense in the compute dtype), nf4 or int8.
    """

    keep: bool
    target: str
    label: str

    def pack(self, weight: torch.Tensor, *, is_quantised: bool) -> Packed:
        """Pack one dense weight; those not worth quantising, and those a packed checkpoint left dense, stay dense."""
        if self.keep or self.target == "none" or not is_quantised:
            return dense.pack(weight)
        return four_bit.pack(weight) if self.target == "nf4" else int8.pack(weight)


def own_packing(quantization_config: Any) -> OwnPacking | None:
    """Read `quantization_config` of a config.json; None for a plain checkpoint.

    Raises:
        CheckpointError: the method is one we cannot unpack, or its numbers make no sense.
    """
    if quantization_config is None:
        return None
    about = quantization_config if isinstance(quantization_config, dict) else quantization_config.to_dict()
    method = str(about.get("quant_method", "")).rpartition(".")[2].lower()
    if method in ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"):
        if about.get("load_in_4bit") or about.get("_load_in_4bit"):
            return OwnPacking("bitsandbytes", 4, f"bitsandbytes {about.get('bnb_4bit_quant_type', 'fp4')}")
        return OwnPacking("bitsandbytes", 8, "bitsandbytes int8")
    if method == "gptq":
        return _own_gptq(about)
    by = f"quantised by {method!r}" if method else "quantised, by a method that has no name"
    raise CheckpointError(f"config.json: the checkpoint is {by}", _READ)


def _own_gptq(about: Mapping[str, Any]) -> OwnPacking:
    bits = _gptq_bits(about.get("bits"), "config.json: the GPTQ config")
    form = about.get("checkpoint_format") or about.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"config.json: the GPTQ config says checkpoint_format {form!r}", _READ)
    if str(about.get("pack_dtype") or "int32").rpartition(".")[2] != "int32":
        raise CheckpointError(
            f"config.json: the GPTQ config says pack_dtype {about['pack_dtype']!r}", "words of int32 are read"
        )
    writer, major = _writer((about.get("meta") or {}).get("quantizer", ""))
    config = GptqConfig(
        bits=bits,
        group_size=_gptq_group(about.get("group_size", -1), "config.json: the GPTQ config"),
        version=2 if form == "gptq_v2" else 1,
        writer=writer,
        writer_major=major,
        act_order=about.get("desc_act"),
        overrides=tuple(_overrides(about.get("dynamic") or {})),
    )
    return OwnPacking("gptq", bits, f"GPTQ {bits}-bit", config)


def _gptq_bits(bits: Any, where: str) -> int:
    if isinstance(bits, bool) or bits not in BITS:
        raise CheckpointError(f"{where} says {bits!r} bits", f"GPTQ comes in {', '.join(map(str, BITS))} bits")
    return int(bits)


def _gptq_group(size: Any, where: str) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size == 0 or size < -1:
        raise CheckpointError(f"{where} says group_size {size!r}", "a group has a positive size, or −1 for all inputs")
    return size


def _writer(quantizer: Any) -> tuple[str, int]:
    """Read `gptqmodel:7.7.0`, alone or in a list: the package's name and its major version."""
    names = " ".join(quantizer) if isinstance(quantizer, list) else str(quantizer)
    found = re.search(r"gptqmodel(?::v?(\d+))?", names.lower())
    return ("gptqmodel", int(found[1] or 0)) if found else ("", 0)


def _overrides(dynamic: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, int | bool]]]:
    """Read gptqmodel's settings by module; "-:" marks modules that were left as they are."""
    for pattern, changes in dynamic.items():
        found: dict[str, int | bool] = {}
        where = f"config.json: the GPTQ config for {pattern!r}"
        if not pattern.startswith("-:"):
            if "bits" in changes:
                found["bits"] = _gptq_bits(changes["bits"], where)
            if "group_size" in changes:
                found["group_size"] = _gptq_group(changes["group_size"], where)
            if "desc_act" in changes:
                found["act_order"] = bool(changes["desc_act"])
        try:
            re.compile(pattern[2:] if pattern[:2] in ("+:", "-:") else pattern)
        except re.error as error:
            raise CheckpointError(f"{where} is no pattern: {error}", "the checkpoint's config is damaged") from error
        yield pattern[2:] if pattern[:2] in ("+:", "-:") else pattern, found


def choose_recipe(quant: Quant, own: OwnPacking | None, *, requantize: bool) -> Recipe:
    """Decide between the checkpoint's own packing and a new one.

    Raises:
        ModelError: another width than the checkpoint's own was asked for, without `requantize`.
    """
    target = {"none": "none", "4bit": "nf4", "8bit": "int8"}[quant]
    if own is None:
        return Recipe(False, target, target)
    if requantize:
        again = "" if target == "none" else f" and packed as {target}"
        return Recipe(False, target, f"{own.label}, unpacked{again}")
    if quant != "none" and _WIDTH[quant] != own.bits:
        raise ModelError(
            f"--quant {quant}, but the checkpoint already is {own.bits}-bit ({own.label})",
            "leave --quant out to keep its own packing, or add --requantize to unpack and quantise it again",
        )
    return Recipe(True, own.label, f"{own.label}, kept as it is")
