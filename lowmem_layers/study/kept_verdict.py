"""What the examination of a packed model found, kept beside the packed weights so that the next start can believe it.

The same bytes, examined by the same code and libraries on the same device, give the same verdict. Whatever of these
differs, the model is examined anew. Weights that are not in the cache are examined at every start, as is remote code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lowmem_layers.engine.engine import Engine
from lowmem_layers.engine.examination import Verdict
from lowmem_layers.errors import RecordError
from lowmem_layers.model.homes.cache import examined_file
from lowmem_layers.record.files import write_text
from lowmem_layers.record.identity import code_digest
from lowmem_layers.study.description import library_versions


def examine(engine: Engine, packed_file: Path | None, change: str) -> tuple[Verdict, bool]:
    """Examine a loaded model, or believe what an earlier start found; the flag tells whether an earlier one did.

    `packed_file` is the file of the cache that holds the weights (None: none does), `change` the change that the
    coalitions make to sublayers.

    Raises:
        RemovalError: the model cannot be taken apart exactly.
        UsageError: the change means nothing for this model.
    """
    if packed_file is None:
        return engine.examine(), False
    path, now = examined_file(packed_file), _circumstances(engine, change)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, msgspec.ValidationError):
        kept = json.loads(path.read_text())
        if kept["circumstances"] == now:
            return engine.examine(msgspec.convert(kept["verdict"], Verdict)), True
    verdict = engine.examine()
    with contextlib.suppress(RecordError):  # a full or read-only cache costs the next start its time, no more
        write_text(path, json.dumps({"circumstances": now, "verdict": msgspec.to_builtins(verdict)}))
    return verdict, False


def _circumstances(engine: Engine, change: str) -> Mapping[str, Any]:
    """Name all that a verdict depends on, besides the packed weights."""
    about = engine.model.describe()
    gpu: Mapping[str, str] = about.get("gpu", {})
    config = json.dumps(engine.model.module.config.to_dict(), sort_keys=True, default=str)
    return {
        "code": code_digest(),
        "versions": library_versions(),
        "model": about["fingerprint"],
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "attention": str(engine.model.config._attn_implementation),
        "dtype": about["dtype"],
        "device": about["device"],
        "gpu": {name: gpu.get(name) for name in ("name", "capability", "cuda", "cudnn", "rocm")},
        "arithmetic": about.get("arithmetic"),
        "change": change,
    }
