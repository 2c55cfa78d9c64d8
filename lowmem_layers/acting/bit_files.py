"""A mixture of formats as other programs take it: llama-quantize's options, and bitsandbytes' settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from lowmem_layers.acting.allotting import KEEP, Measured
from lowmem_layers.acting.writing import new_folder
from lowmem_layers.errors import UsageError
from lowmem_layers.game.players.player import Player
from lowmem_layers.model.load import Inspection

# llama.cpp's names of the tensors of each kind of sublayer begin so; norms and routers among them are never quantised.
_TENSORS = {"attn": "attn_", "ffn": "ffn_", "moe": "ffn_"}
_BASES = {"mxfp4": "mxfp4_moe"}  # the whole model's format, where llama-quantize calls it otherwise


def tensor_types(players: Sequence[Player], formats: Sequence[str]) -> list[str]:
    """Write llama-quantize's options: a regular expression for each sublayer's tensors, and their type.

    Raises:
        UsageError: a mixer has the format: which of llama.cpp's tensors are its, differs from family to family.
    """
    lines = []
    for player, name in zip(players, formats, strict=True):
        if player.kind not in _TENSORS:
            raise UsageError(
                f"{player.name}: llama.cpp's names for a mixer's tensors are not known here",
                "leave -o out: the table on stdout names the formats",
            )
        lines.append(rf'--tensor-type "blk\.{player.layer}\.{_TENSORS[player.kind]}.*={name}"')
    return lines


def skipped_modules(found: Inspection, formats: Sequence[str]) -> list[str]:
    """Name the modules that bitsandbytes leaves alone: those of sublayers that stay as they are, and the head."""
    skipped = []
    for player, name in zip(found.anatomy.players, formats, strict=True):
        if name == KEEP:
            children = found.anatomy.layers[player.layer].children_of(player.kind)
            skipped += [f"{found.prefix}.{player.layer}.{child}" for child in children]
    head = found.module.get_output_embeddings()
    return skipped + [path for path, module in found.module.named_modules() if module is head]


def write_files(found: Inspection, measured: Measured, chosen: Sequence[int], folder: Path) -> list[str]:
    """Write a mixture into a new folder; say what it holds.

    Raises:
        UsageError: the folder is there, or the mixture cannot be said in the program's options.
    """
    formats = [measured.options[option].name for option in chosen]
    players = found.anatomy.players
    into = measured.formats[0]
    with new_folder(folder) as partial:
        rows = [f"{player.name},{name}" for player, name in zip(players, formats, strict=True)]
        (partial / "formats.csv").write_text("\n".join(["sublayer,format", *rows]) + "\n")
        if into.runtime == "llama.cpp":
            lines = tensor_types(players, formats)
            base = max(measured.formats, key=lambda each: formats.count(each.name)).name
            # a GGUF file is quantised once more, as it was measured; another checkpoint has to be converted first
            own = found.source.gguf_path
            source, again = (shlex.quote(str(own)), ["--allow-requantize"]) if own else ("model-f16.gguf", [])
            command = ["llama-quantize", *again, *lines, f"{source} mixture.gguf {_BASES.get(base, base)}"]
            (partial / "llama-quantize.sh").write_text(" \\\n  ".join(command) + "\n")
            return [
                f"{folder}/llama-quantize.sh quantises {source}; embedding and head, which were not measured, get what "
                f"a model in {base} has there"
            ]
        about = (
            {"load_in_4bit": True, "bnb_4bit_quant_type": into.name} if into.name != "int8" else {"load_in_8bit": True}
        )
        settings = {"quant_method": "bitsandbytes", **about, "llm_int8_skip_modules": skipped_modules(found, formats)}
        (partial / "quantization_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        return [f"{folder}/quantization_config.json holds what transformers' BitsAndBytesConfig takes"]
