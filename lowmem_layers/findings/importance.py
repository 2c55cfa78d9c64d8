"""Importance as a table: the columns that others rely on, and shares and rank intervals beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.importance import Importance, estimate, estimate_permutations
from lowmem_layers.game.estimators.weights import Estimator
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.spec import one_of

N_TOP = 3
EstimatorName = Literal[Estimator, "permutation"]
ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)

IMPORTANCE_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("sublayer", pa.string()),
        ("estimator", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("ablation_drop", pa.float64()),
        ("ablation_ci_low", pa.float64()),
        ("ablation_ci_high", pa.float64()),
        ("rank", pa.int32()),
        ("rank_ci_low", pa.int32()),
        ("rank_ci_high", pa.int32()),
        ("share", pa.float64()),
        ("share_ci_low", pa.float64()),
        ("share_ci_high", pa.float64()),
        ("top", pa.string()),
        ("n_items", pa.int32()),
        ("n_clusters", pa.int32()),
        ("level", pa.float64()),
        ("rank_together_low", pa.int32()),
        ("rank_together_high", pa.int32()),
        ("ci_holds_from", pa.int32()),
        ("note", pa.string()),
    ]
)
CONTRADICTION = (
    "estimate and drop have opposite signs: most windows start from models that lack a neighbour, perhaps collapsed"
)
_MEMBERSHIP = {1: "in", -1: "out", 0: "undecided"}


def estimates(
    tables: Sequence[ValueTable], design: Design, estimator: str | None = None, level: float = 0.95, top: int = N_TOP
) -> list[Importance]:
    """Estimate importance on every task, and on their mean (`all`) where there are several.

    `estimator` None is the one for which the design's coalitions are measured; `top` the size of the top whose
    membership is decided.

    Raises:
        UsageError: an unknown estimator, or one that needs coalitions that were not measured.
    """
    name = design.estimator if estimator is None else one_of("--estimator", estimator, ESTIMATORS)
    groups = [[table] for table in tables] + ([list(tables)] if len(tables) > 1 else [])
    top_k = min(top, tables[0].n_players)
    if name != "permutation":
        return [estimate(group, name, level=level, top_k=top_k) for group in groups]
    if not design.orders:
        raise UsageError(
            "no removal orders were measured", "they are with: lowmem-layers run --coalitions permutations"
        )
    return [estimate_permutations(group, design.orders, cuts=design.cuts, level=level, top_k=top_k) for group in groups]


def as_table(found: Sequence[Importance]) -> pa.Table:
    """Lay estimates out: one row for each task and player, in execution order. An unknown rank becomes null."""
    parts = []
    for each in found:
        n_players = len(each.players)
        columns: dict[str, Any] = {
            "task": [each.task] * n_players,
            "sublayer": list(each.players),
            "estimator": [each.estimator] * n_players,
            "top": [_MEMBERSHIP[int(decision)] for decision in each.top_k_decision],
            "n_items": [each.n_items] * n_players,
            "n_clusters": [each.n_clusters] * n_players,
            "level": [each.level] * n_players,
            "note": [CONTRADICTION if yes else "" for yes in each.contradicts],
        }
        for field in IMPORTANCE_SCHEMA:
            if field.name in columns:
                continue
            what, _, end = field.name.rpartition("_")  # ci_low, share_ci_high, …: one end of an interval
            known = getattr(getattr(each, what), end) if end in ("low", "high") else getattr(each, field.name)
            numbers = np.asarray(known, dtype=np.float64)
            unknown = ~np.isfinite(numbers)
            whole = pa.types.is_integer(field.type)
            columns[field.name] = pa.array(np.where(unknown, 0, numbers), mask=unknown) if whole else numbers
        arrays = [pa.array(columns[field.name]).cast(field.type) for field in IMPORTANCE_SCHEMA]
        parts.append(pa.table(arrays, schema=IMPORTANCE_SCHEMA))
    return pa.concat_tables(parts)
