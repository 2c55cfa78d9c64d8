"""Importance as a table: the columns that others rely on, and shares and rank intervals beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.importance import Importance, estimate, estimate_permutations
from lowmem_layers.game.answers.paper_tables import CODE_LARGEST, code_values, paper_shares
from lowmem_layers.game.estimators.weights import Estimator, largest_window
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.values.table import FloatArray, ValueTable
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
        ("value_as_code", pa.float64()),
        ("share_as_code", pa.float64()),
    ]
)
CONTRADICTION = (
    "estimate and drop have opposite signs: most windows start from models that lack a neighbour, perhaps collapsed"
)
UNREACHED = "no removal order reached it before its cut: the 0 is no measurement"
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


@dataclass(frozen=True, eq=False)
class AsCode:
    """One task's estimates and shares (or their means over tasks) as the authors' public code computes them.

    Shapes: (players,) each.
    """

    value: FloatArray
    share: FloatArray


def as_code(tables: Sequence[ValueTable], design: Design) -> list[AsCode]:
    """Compute what the authors' public code would say, task by task, and on their mean where there are several.

    That is: windows of up to 3, and accuracies without a sublayer rounded to 4 decimals (their program's own default
    and rounding). Nothing for values that are no accuracies, and where such windows were not measured.
    """
    is_theirs = design.coalitions == "windows" and all(table.is_binary for table in tables)
    if not is_theirs or largest_window(tables[0].coalitions, tables[0].n_players) < CODE_LARGEST:
        return []
    found = [AsCode(code_values(each), paper_shares([each], CODE_LARGEST, as_code=True)) for each in tables]
    if len(found) > 1:
        found.append(AsCode(*(np.mean([getattr(each, name) for each in found], axis=0) for name in ("value", "share"))))
    return found


def as_table(found: Sequence[Importance], code: Sequence[AsCode] = ()) -> pa.Table:
    """Lay estimates out: one row for each task and player, in execution order. An unknown rank becomes null.

    `code`, if any, are the columns of the authors' public code, for the same tasks; else these columns are null.
    """
    parts = []
    for place, each in enumerate(found):
        n_players = len(each.players)
        columns: dict[str, Any] = {
            "task": [each.task] * n_players,
            "sublayer": list(each.players),
            "estimator": [each.estimator] * n_players,
            "top": [_MEMBERSHIP[int(decision)] for decision in each.top_k_decision],
            "n_items": [each.n_items] * n_players,
            "n_clusters": [each.n_clusters] * n_players,
            "level": [each.level] * n_players,
            "note": [
                UNREACHED if unreached else CONTRADICTION if contradicts else ""
                for unreached, contradicts in zip(each.unreached, each.contradicts, strict=True)
            ],
            "value_as_code": code[place].value if code else [None] * n_players,
            "share_as_code": code[place].share if code else [None] * n_players,
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
