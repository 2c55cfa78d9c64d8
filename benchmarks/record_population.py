"""A finished run's items as a population: the values over all of them are the truth for samples drawn from it."""

from __future__ import annotations

from pathlib import Path

from lowmem_layers import open_run
from lowmem_layers.game.values.table import ValueTable

VALUES = {"metric": None, "probability": "probability", "log-likelihood": "loglikelihood"}


def populations(folder: Path) -> dict[str, list[ValueTable]]:
    """Read a run with three values: each task's own metric, the gold answer's probability and its log-likelihood."""
    run = open_run(folder)
    return {name: run.value_tables(value) for name, value in VALUES.items()}
