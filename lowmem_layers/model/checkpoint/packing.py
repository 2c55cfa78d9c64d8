"""Which packing the decoder layers' weights get: the checkpoint's own, or the one that the request asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.checkpoint.safetensors_files import read_notes
from lowmem_layers.model.formats import CHECKPOINT_FORMATS, DENSE, TARGETS, CheckpointFormat, OwnPacking, Packed
from lowmem_layers.model.formats.auto_round import translated
from lowmem_layers.model.formats.torchao import NOTES
from lowmem_layers.model.spec import Quant

# where writers put their settings before config.json had a place for them, and what method they mean
_SETTINGS_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_WIDTH: Mapping[Quant, int] = {"4bit": 4, "8bit": 8}
_TARGET: Mapping[Quant, str] = {"none": "none", "4bit": "nf4", "8bit": "int8"}


@dataclass(frozen=True)
class Packing:
    """What is done with each decoder layer's linear weights: kept as the checkpoint packs them, or packed as `target`.

    `target` is none (dense in the compute dtype), nf4 or int8; where weights are kept, the label of their own packing.
    """

    keep: bool
    target: str
    label: str

    def pack(self, weight: torch.Tensor, *, is_quantised: bool) -> Packed:
        """Pack one dense weight; those not worth quantising, and those a packed checkpoint left dense, stay dense."""
        return (DENSE if self.keep or not is_quantised else TARGETS[self.target]).pack(weight)


def read_quantisation(folder: Path, config: Any) -> Any:
    """Find what a checkpoint's folder says about its quantisation: in the config, or in the file of an older writer.

    auto-gptq wrote `quantize_config.json` alone, AutoAWQ `quant_config.json`, modelopt `hf_quant_config.json`; torchao
    writes half of what is needed into the headers of the weights' files. None for a plain checkpoint.

    Raises:
        CheckpointError: such a file is no table.
    """
    if (found := getattr(config, "quantization_config", None)) is not None:
        about = found if isinstance(found, dict) else found.to_dict()
        return {**about, NOTES: read_notes(folder)} if "torchao" in str(about.get("quant_method")).lower() else about
    for name, method in _SETTINGS_FILES.items():
        if not (folder / name).is_file():
            continue
        try:
            about = dict(json.loads((folder / name).read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{name} is no table of settings", "download or save the checkpoint again") from error
        return {"quant_method": method, **about}
    return None


def own_packing(
    quantization_config: Any, formats: Iterable[CheckpointFormat] = CHECKPOINT_FORMATS
) -> OwnPacking | None:
    """Read `quantization_config` of a config.json; None for a plain checkpoint.

    Raises:
        CheckpointError: none of the formats knows the method, or the config's numbers make no sense.
    """
    if quantization_config is None:
        return None
    about = quantization_config if isinstance(quantization_config, dict) else quantization_config.to_dict()
    # an enumeration's member reads "QuantizationMethod.GPTQ"
    method = str(about.get("quant_method", "")).rpartition(".")[2].lower()
    formats = tuple(formats)
    about = translated({**about, "quant_method": method})
    for each in formats:
        if (own := each.from_config(about)) is not None:
            return own
    by = f"quantised by {method!r}" if method else "quantised, by a method that has no name"
    known = ", ".join(each.title for each in formats)
    raise CheckpointError(f"config.json: the checkpoint is {by}", f"plain, {known} and GGUF checkpoints are read")


def choose_packing(quant: Quant, own: OwnPacking | None, *, requantize: bool) -> Packing:
    """Decide between the checkpoint's own packing and a new one.

    Raises:
        ModelError: another width than the checkpoint's own was asked for, without `requantize`.
    """
    target = _TARGET[quant]
    if own is None:
        return Packing(False, target, "not quantised" if target == "none" else target)
    if requantize:
        again = "" if target == "none" else f" and packed as {target}"
        return Packing(False, target, f"{own.label}, unpacked{again}")
    if quant != "none" and _WIDTH[quant] != own.bits:
        raise ModelError(
            f"--quant {quant}, but the checkpoint already is {own.bits}-bit ({own.label})",
            "leave --quant out to keep its own packing, or add --requantize to unpack and quantise it again",
        )
    return Packing(True, own.label, f"{own.label}, kept as it is")
