"""Checkpoints of Intel's auto-round, which are packed in another package's layout: the config is translated.

Source: `inference.backend` of auto-round: `auto_round:auto_gptq` stores zero points minus one (GPTQ's version 1),
`auto_round` and `auto_round:gptqmodel` as they are (version 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lowmem_layers.errors import CheckpointError

METHODS = ("auto-round", "auto_round", "intel/auto-round")

_GPTQ_VERSIONS = {"auto_round:auto_gptq": "gptq", "auto_round": "gptq_v2", "auto_round:gptqmodel": "gptq_v2"}
_NOT_QUANTISED_BITS = 16


def translated(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a config of auto-round as the package would whose layout it uses; any other config as it is.

    Raises:
        CheckpointError: the layout is not one that is read.
    """
    if about["quant_method"] not in METHODS:
        return about
    layout = str(about.get("packing_format") or about.get("backend") or "auto_round:auto_gptq")
    if layout == "auto_round:auto_awq":
        return {**about, "quant_method": "awq", "version": "gemm"}
    if layout not in _GPTQ_VERSIONS:
        raise CheckpointError(
            f"config.json: the auto-round config says packing_format {layout!r}",
            f"these are read: {', '.join((*_GPTQ_VERSIONS, 'auto_round:auto_awq'))}",
        )
    # layers with settings of their own, by name; those of sixteen bits are plain
    overrides = {}
    for name, changes in (about.get("extra_config") or {}).items():
        plain = int(changes.get("bits") or _NOT_QUANTISED_BITS) >= _NOT_QUANTISED_BITS
        overrides[f"{'-' if plain else '+'}:{re.escape(name)}$"] = changes
    return {
        **about, "quant_method": "gptq", "checkpoint_format": _GPTQ_VERSIONS[layout], "dynamic": overrides,
        "desc_act": about.get("desc_act", False),
    }  # fmt: skip
