"""The removal of whole decoder layers as recipes for other tools: a mergekit file and a llama-quantize line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def layer_ranges(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Cut the kept layers into ranges, from the first to one behind the last of each."""
    ranges: list[tuple[int, int]] = []
    for layer in kept:
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return ranges


def mergekit_yaml(model: str, kept: Sequence[int], dtype: str) -> str:
    """Write mergekit's own format: kept layers passed through, one slice for each range."""
    quoted = "'" + model.replace("'", "''") + "'"
    slices = "".join(
        f"- sources:\n  - model: {quoted}\n    layer_range: [{low}, {high}]\n" for low, high in layer_ranges(kept)
    )
    return f"merge_method: passthrough\ndtype: {dtype}\nslices:\n{slices}"


def llama_quantize_line(kept: Sequence[int], n_layers: int, source: str = "model.gguf") -> str:
    """Write the line by which llama.cpp copies a GGUF file without these layers."""
    gone = ",".join(str(layer) for layer in range(n_layers) if layer not in set(kept))
    return f"llama-quantize --allow-requantize --prune-layers {gone} {shlex.quote(source)} pruned.gguf COPY"
