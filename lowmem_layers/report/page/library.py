"""The plotting library that is shipped inside the page: plotly.js, from the installed plotly package."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import metadata


@dataclass(frozen=True)
class Library:
    """The library's script: compressed for the page, its hash for the page's security policy, and its licence."""

    packed: str
    hash: str
    name: str
    licence: str


@cache
def library() -> Library:
    """Compress plotly.js as the browser's DecompressionStream reads it; 4.8 MB become 2 MB."""
    from plotly.offline import get_plotlyjs  # here, since it takes a third of a second

    script = get_plotlyjs()
    installed = metadata.distribution("plotly")
    text = installed.read_text("licenses/LICENSE.txt") or script[: script.index("*/") + 2]
    name = next((line.strip("/* ") for line in script[:200].splitlines() if "plotly.js v" in line), "plotly.js")
    packed = base64.b64encode(gzip.compress(script.encode(), 6, mtime=0)).decode()
    return Library(packed, script_hash(script), name, text.strip())


def script_hash(script: str) -> str:
    """Give a script's hash as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
