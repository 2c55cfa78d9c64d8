"""Give each player one of several options under a common budget, so that the sum of costs is least.

    minimise    Σ_i c[i, f_i] + Σ_i p[i, f_i, f_{i+1}]      subject to      Σ_i w[i, f_i] ≤ budget

c is what an option costs a player, p what two neighbours' options cost together beyond that (none where nothing is
known), w what an option takes of the budget. This is the multiple-choice knapsack problem, with costs along a chain; it
is solved exactly as a mixed-integer linear program (the chain's part by the local polytope, which is exact on trees:
Wainwright and Jordan 2008, section 4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lowmem_layers.errors import UsageError
from lowmem_layers.game.values.table import FloatArray


def allot(costs: FloatArray, weights: FloatArray, budget: float, pairs: FloatArray | None = None) -> tuple[int, ...]:
    """Choose an option for each player.

    Shapes: `costs` and `weights` (players, options), `pairs` (players − 1, options, options); one option a player.

    Raises:
        UsageError: even the options that take the least are more than the budget.
    """
    n_players, n_options = costs.shape
    least = float(weights.min(axis=1).sum())
    if least > budget * (1 + 1e-12):
        raise UsageError(f"the least that can be allotted takes {least:g}, the budget is {budget:g}")
    if not np.isfinite(costs).all() or (pairs is not None and not np.isfinite(pairs).all()):
        raise UsageError("some costs are not known: too few items are finished", "measure more items")
    from scipy.optimize import Bounds, LinearConstraint, milp  # here: it takes a while to import
    from scipy.sparse import coo_array

    # 1) variables: x[i, f], then z[i, f, g] for what neighbours cost together
    n_single, n_pairs = n_players * n_options, 0 if pairs is None else pairs.size
    objective = np.concatenate([costs.ravel(), np.zeros(0) if pairs is None else pairs.ravel()])
    rows: list[dict[int, float]] = []
    # 2) each player has one option; z's margins are the x of both its players
    for i in range(n_players):
        rows.append({i * n_options + f: 1.0 for f in range(n_options)})
    if pairs is not None:
        z = n_single + np.arange(n_pairs).reshape(pairs.shape)
        for i in range(n_players - 1):
            for f in range(n_options):
                rows.append({int(place): 1.0 for place in z[i, f]} | {i * n_options + f: -1.0})
                rows.append({int(place): 1.0 for place in z[i, :, f]} | {(i + 1) * n_options + f: -1.0})
    equal: Any = np.array([1.0] * n_players + [0.0] * (len(rows) - n_players))
    places = [(row, column, value) for row, of in enumerate(rows) for column, value in of.items()]
    of_rows, columns, values = (np.array(each) for each in zip(*places, strict=True))
    margins = coo_array((values, (of_rows, columns)), shape=(len(rows), len(objective))).tocsr()
    # 3) the budget, in units of it, so that rounding is the same whatever the unit
    taken = np.concatenate([weights.ravel() / budget, np.zeros(n_pairs)])[None]
    found = milp(
        objective,
        integrality=np.concatenate([np.ones(n_single), np.zeros(n_pairs)]),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(margins, equal, equal), LinearConstraint(taken, -np.inf, 1 + 1e-12)],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise UsageError(f"no allotment was found: {found.message}")
    chosen = found.x[:n_single].reshape(n_players, n_options)
    return tuple(int(each) for each in chosen.argmax(axis=1))
