"""How far single sublayers, and pairs of neighbours, explain what windows of removed sublayers cost: least squares.

The loss of a removal, v(N) − v(S), is fitted by a sum over the removed players (additive), and with one more term for
each two neighbours that are removed together. R² close to 1 says that a window costs what its parts cost; what is left
are interactions of three and more, interactions across a gap, and noise of the items.
The fit to removals that took part in it flatters a model with many terms, so R² is given as predicted, too: each
removal by a fit to all others (PRESS, which the leverages give without refitting).
The losses are means over items, and their noise cannot be fitted: it lowers R², by 5 points for accuracies of 30 items.
The jackknife that gives the interval estimates that bias, too, and it is taken off.
Source: Allen 1974 for PRESS; Efron 1982, chapter 2, for the jackknife's bias; the additive fit is the linear model of
the marginal contributions of Ilyas et al. 2022, "Datamodels".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.game.uncertainty.errors import influence_of
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import FloatArray, ValueTable

_BLOCKS = 40
_FEWEST_BLOCKS = 10  # with 5 items intervals covered 90–97 %, with 10 and more 92–99 %: benchmarks/README.md
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Explained:
    """The share of the windows' variance that a fit explains: as fitted, with its interval, and as predicted.

    `fitted` is that of the expected losses: without the items' noise, as far as the jackknife tells it. `ci` is the
    jackknife's over clusters of items; nan with fewer than 10, or where one item alone makes all differences, so that
    leaving items out shows nothing. `predicted` is that of the losses as they are, and leaves out removals with a term
    of their own, which no other removal can predict: with pairs, the first and the last sublayer alone.
    """

    terms: int
    windows: int
    fitted: float
    ci: Interval[float]
    predicted: float


def explained(tables: Sequence[ValueTable], *, pairs: bool, level: float = 0.95) -> Explained | None:
    """Fit the mean losses of all measured removals (the mean over tasks, of several).

    None where the fit has as many terms as there are removals, a loss is not finite, or nothing varies.
    """
    coalitions = tables[0].coalitions
    if any(table.coalitions != coalitions for table in tables):
        return None
    removals = [c for c, removed in enumerate(coalitions) if removed]
    full = tables[0].column_index(())
    design = design_matrix([coalitions[c] for c in removals], tables[0].n_players, pairs=pairs)
    parts = [influence_of(t.values[:, [full]] - t.values[:, removals], t.cluster_codes) for t in tables]
    loss = np.mean([part.value for part in parts], axis=0)  # (removals,)
    rank = int(np.linalg.matrix_rank(design)) if len(removals) else 0
    if rank >= len(removals) or not np.isfinite(loss).all() or np.ptp(loss) == 0:
        return None
    hat = design @ np.linalg.pinv(design)  # (removals, removals)
    # Leave-one-out residuals have the closed form residual / (1 − leverage).
    rest, residual = 1.0 - np.diag(hat), loss - hat @ loss
    known = rest > 1e-9
    press, total = ((residual[known] / rest[known]) ** 2).sum(), ((loss[known] - loss[known].mean()) ** 2).sum()
    predicted = float(1.0 - press / total) if total > 0 else float("nan")
    pieces = np.concatenate([part.pieces for part in parts]) / len(tables)  # (clusters, removals)
    fitted, spread = _jackknife(loss, pieces, hat)
    half = float(stdtrit(min(len(pieces), _BLOCKS) - 1, 0.5 + level / 2)) * spread
    return Explained(rank, len(removals), fitted, Interval(fitted - half, fitted + half).clip(0.0, 1.0), predicted)


def design_matrix(removals: Sequence[Removed], n_players: int, *, pairs: bool) -> FloatArray:
    """Say which players, and which neighbours together, each removal takes away. Shapes: (removals, terms)."""
    gone = np.zeros((len(removals), n_players))
    for row, removed in enumerate(removals):
        gone[row, list(removed)] = 1.0
    if not pairs:
        return gone
    together = gone[:, :-1] * gone[:, 1:]
    return np.concatenate([gone, together[:, together.any(axis=0)]], axis=1)


def _r_squared(loss: FloatArray, hat: FloatArray) -> float:
    """Give 1 − residual / total sum of squares. Shapes: (removals,), (removals, removals)."""
    return float(1.0 - ((loss - hat @ loss) ** 2).sum() / ((loss - loss.mean()) ** 2).sum())


def _jackknife(loss: FloatArray, pieces: FloatArray, hat: FloatArray) -> tuple[float, float]:
    """Estimate R² without its bias, and its standard error, by leaving out blocks of clusters.

    Where the error is unknown it is nan, and R² is that of the losses as they are.
    Shapes: (removals,), (clusters, removals), (removals, removals).
    """
    plain, n_blocks = _r_squared(loss, hat), min(_BLOCKS, len(pieces))
    if np.abs(pieces).max() <= _ROUNDING * np.abs(loss).max():
        return plain, 0.0  # every item loses the same
    if n_blocks < _FEWEST_BLOCKS:
        return plain, float("nan")
    block = np.random.default_rng(0).permutation(np.arange(len(pieces)) % n_blocks)
    grow = n_blocks / (n_blocks - 1.0)
    left_out = [loss - np.sqrt(grow) * pieces[block == left].sum(axis=0) for left in range(n_blocks)]
    if min(map(np.ptp, left_out)) == 0:
        return plain, float("nan")  # no loss differs without these items
    found = np.array([_r_squared(each, hat) for each in left_out])  # (blocks,)
    spread = float(np.sqrt(((found - found.mean()) ** 2).sum() / grow))
    if spread <= _ROUNDING:
        return plain, float("nan")
    return float(np.clip(plain - (n_blocks - 1) * (found.mean() - plain), 0.0, 1.0)), spread
