"""From the sections' results to one page of markdown tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def markdown(document: dict[str, Any]) -> str:
    """Write a table a section, a row a case; what failed or was skipped is said in its row."""
    about = ", ".join(f"{key} {value}" for key, value in document.items() if key in ("torch", "transformers", "cuda"))
    lines = ["# benchmarks.gpu", "", f"{about}; options: {document['options']}"]
    for section, found in document["sections"].items():
        rights = [result["right"] for result in found.values() if "right" in result]
        verdict = f": {sum(rights)} of {len(rights)} right" if rights else ""
        lines += ["", f"## {section}{verdict}", "", "| case | result |", "| --- | --- |"]
        lines += [f"| {case} | {'; '.join(_cells(result))} |" for case, result in found.items()]
    return "\n".join(lines) + "\n"


def _cells(result: dict[str, Any]) -> Iterator[str]:
    """Write one result's figures, what went wrong first."""
    for key, value in sorted(result.items(), key=lambda pair: pair[0] not in ("error", "skipped", "right")):
        if isinstance(value, float):
            yield f"{key} {value:.4g}"
        elif key == "kernels" and value:
            yield "kernels " + ", ".join(f"{each['kernel'][:40]} {each['seconds']:.3g} s" for each in value[:8])
        elif not (key == "where" or value == "" or value is None):
            yield f"{key} {str(value)[:300]}".replace("|", "/").replace("\n", " ")
