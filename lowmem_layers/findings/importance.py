"""Importance as a table: the columns that others rely on, and shares and rank intervals beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.game.answers.importance import Importance, estimate, estimate_permutations
from lowmem_layers.game.estimators.weights import Estimator
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.spec import one_of

N_TOP = 3
ESTIMATORS: tuple[str, ...] = (*get_args(Estimator), "permutation")

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
    ]
)
_MEMBERSHIP = {1: "in", -1: "out", 0: "undecided"}


def estimates(
    tables: Sequence[ValueTable], game: Design, estimator: str | None = None, level: float = 0.95, top: int = N_TOP
) -> list[Importance]:
    """Estimate importance on every task, and on their mean (`all`) where there are several.

    `estimator` None is the one that the game's coalitions are meant for; `top` the size of the top whose membership is
    decided.

    Raises:
        UsageError: an unknown estimator, or one that needs coalitions that were not measured.
    """
    name = estimator or game.estimator
    one_of("--estimator", name, ESTIMATORS)
    top_k = min(top, tables[0].n_players)
    if name == "permutation":
        found = [_by_orders([table], game, level, top_k) for table in tables]
        return found if len(tables) == 1 else [*found, _by_orders(tables, game, level, top_k)]
    known: Estimator = name  # type: ignore[assignment]
    found = [estimate(table, known, level=level, top_k=top_k) for table in tables]
    return found if len(tables) == 1 else [*found, estimate(tables, known, level=level, top_k=top_k)]


def _by_orders(tables: Sequence[ValueTable], game: Design, level: float, top_k: int) -> Importance:
    if not game.orders:
        raise UsageError(
            "no removal orders were measured", "they are with: lowmem-layers run --coalitions permutations"
        )
    return estimate_permutations(tables, game.orders, cuts=game.cuts, level=level, top_k=top_k)


def importance_table(
    tables: Sequence[ValueTable], game: Design, estimator: str | None = None, level: float = 0.95, top: int = N_TOP
) -> pa.Table:
    """Lay out `estimates`: a row a task and sublayer, in execution order.

    Raises:
        UsageError: an unknown estimator, or one that needs coalitions that were not measured.
    """
    return as_table(estimates(tables, game, estimator, level, top))


def as_table(found: Sequence[Importance]) -> pa.Table:
    """Lay estimates out: a row a task and player, in execution order."""
    return pa.concat_tables([_rows(each) for each in found])


def _rows(found: Importance) -> pa.Table:
    n_players = len(found.players)
    plain = {
        "task": [found.task] * n_players,
        "sublayer": list(found.players),
        "estimator": [found.estimator] * n_players,
        "top": [_MEMBERSHIP[int(decision)] for decision in found.top_k_decision],
        "n_items": [found.n_items] * n_players,
    }
    columns = [
        pa.array(plain[field.name], field.type) if field.name in plain else _numbers(found, field)
        for field in IMPORTANCE_SCHEMA
    ]
    return pa.table(columns, schema=IMPORTANCE_SCHEMA)


def _numbers(found: Importance, field: pa.Field) -> pa.Array:
    """Take a column; a rank that is not a number (its value is none) becomes null."""
    what, _, end = field.name.rpartition("_")  # ci_low, share_ci_high, …: one end of an interval
    known = getattr(getattr(found, what), end) if end in ("low", "high") else getattr(found, field.name)
    values = np.asarray(known, dtype=np.float64)
    if pa.types.is_floating(field.type):
        return pa.array(values)
    unknown = ~np.isfinite(values)
    return pa.array(np.where(unknown, 0, values).astype(np.int32), mask=unknown)
