"""What the examination of a packed model found, kept beside the packed weights so that the next start can believe it.

The same bytes, examined by the same code and libraries on the same device, give the same verdict. Whatever of these
differs, the model is examined anew. Weights that are not in the cache are examined at every start, as is remote code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lowmem_layers.engine.engine import Engine
from lowmem_layers.engine.examination import Verdict
from lowmem_layers.errors import RecordError
from lowmem_layers.model.homes.cache import examined_file
from lowmem_layers.record.files import write_text
from lowmem_layers.record.identity import code_digest
from lowmem_layers.study.description import library_versions


def kept_verdict(engine: Engine, change: str) -> Verdict | None:
    """Read what an earlier start found of this model and this change to its sublayers; None where nothing is known."""
    if engine.model.packed_file is None:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(examined_file(engine.model.packed_file).read_text())
        verdict = Verdict(**kept["verdict"])
        is_whole = [type(value) for value in asdict(verdict).values()] == [bool, str, float, float, int]
        if is_whole and kept["circumstances"] == _circumstances(engine, change):
            return verdict
    return None


def keep_verdict(engine: Engine, change: str, verdict: Verdict) -> None:
    """Keep a verdict for the next start. A full or read-only cache costs that its time, no more."""
    if engine.model.packed_file is not None:
        text = json.dumps({"circumstances": _circumstances(engine, change), "verdict": asdict(verdict)})
        with contextlib.suppress(RecordError):
            write_text(examined_file(engine.model.packed_file), text)


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
