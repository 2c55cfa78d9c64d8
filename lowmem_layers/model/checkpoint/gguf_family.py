"""What is particular to one architecture of llama.cpp: the row that `gguf_families` has for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lowmem_layers.model.checkpoint.gguf_file import GgufHeader
from lowmem_layers.model.checkpoint.gguf_keys import GgufKeys

Fields = dict[str, Any]

RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"


@dataclass(frozen=True)
class Family:
    """One architecture: transformers' model type, and what is particular to it.

    `epsilon` is the norms' key and `epsilon_field` the config's name for it; `keys` are further keys with the config's
    names; `fixed` is what the graph does; `rotates_part` says that a part of a head may be rotated; `has_head_dim` that
    a head's width is free; `by_layer` that heads and widths differ between layers and `rotates` that positions are a
    rotation: where not, `finish` sets them. `finish` sets what needs more than one key. `drafts` says that further
    blocks of the file are for drafting tokens; they are not read.

    How the tensors lie in the file: with `permuted` query and key rows, norms with `offset_norms`, experts or
    projections `turned` in the model, heads of linear attention's values `tiled` over its keys.
    """

    model_type: str
    epsilon: str = RMS
    epsilon_field: str = "rms_norm_eps"
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rotates_part: bool = False
    has_head_dim: bool = False
    by_layer: bool = False
    rotates: bool = True
    drafts: bool = False
    finish: Callable[[Fields, GgufKeys, GgufHeader], None] | None = None
    permuted: bool = False
    offset_norms: bool = False
    turned: bool = False
    tiled: bool = False


def sliding(keys: GgufKeys, n_layers: int, period: int) -> list[str]:
    """Name each layer's attention: full in the last of every `period` layers, or as the file lists it."""
    pattern = keys.get("attention.sliding_window_pattern", period)
    if isinstance(pattern, tuple):
        slides = [bool(each) for each in pattern]
    else:
        slides = [layer % pattern < pattern - 1 for layer in range(n_layers)]
    return ["sliding_attention" if each else "full_attention" for each in slides]
