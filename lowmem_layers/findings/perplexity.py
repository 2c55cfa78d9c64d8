"""Perplexities of lm-evaluation-harness' tasks, by its own formulas over all items together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowmem_layers.findings.run import Run


def perplexity_lines(run: Run) -> tuple[str, ...]:
    """Say the full model's perplexity on each task that the harness judges by one; nothing before all items are done.

    With it goes the share of continuations that the model would have written, where all tasks of the run measure it.

    Source: lm-evaluation-harness, `api/metrics.py`: `perplexity`, `weighted_perplexity` and `bits_per_byte`. A rolling
    task divides by the words and bytes that its own rule counts, of all documents together.
    """
    lines = []
    tables = run.value_tables("loglikelihood")
    greedy = run.value_tables("greedy") if run.values.allows("greedy") else [None] * len(tables)
    for entry, table, written in zip(run.manifest.data, tables, greedy, strict=True):
        kind = entry.source.get("output_type") if entry.source.get("kind") == "lm-evaluation-harness" else None
        if kind is None or table.n_items < entry.items:
            continue
        total = float(table.values[:, table.column_index(())].sum())  # nats
        if kind == "loglikelihood":
            line = f"{entry.task}: perplexity {_exp(-total / entry.items)} of the continuations"
            if written is not None:
                share = float(written.values[:, written.column_index(())].mean())
                line += f", of which it would have written {100 * share:.1f} %"
            lines.append(line)
            continue
        words, n_bytes = entry.source.get("words"), entry.source.get("bytes")
        if isinstance(words, int) and isinstance(n_bytes, int) and words > 0 and n_bytes > 0:
            lines.append(
                f"{entry.task}: word perplexity {_exp(-total / words)}, byte perplexity {_exp(-total / n_bytes)}, "
                f"{-total / n_bytes / math.log(2):.4f} bits per byte"
            )
    return tuple(lines)


def _exp(nats: float) -> str:
    try:
        return f"{math.exp(nats):.4f}"
    except OverflowError:
        return "too large to be written"
