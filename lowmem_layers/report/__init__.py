"""From the record to tables, figures and a page."""

from __future__ import annotations

from lowmem_layers.report.write import write_report

__all__ = ["write_report"]
