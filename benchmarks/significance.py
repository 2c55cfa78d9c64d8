"""Measure how often a difference is called significant that is none, and whether p values and intervals agree.

    python -m benchmarks.significance [--tables 1000] [--quick]
    python -m benchmarks.significance --record RUN [--tables 1000]    a finished run's items, shifted to a mean of 0

A table asks 60 questions about the same items: is the mean of this column 0? Where nothing differs, every significant
answer is wrong; Holm's correction at 5 % promises that at most one table in twenty has any (4.9 % where the questions
are independent, as here). Two rules are held against each other on the same tables:

    student     the plain two-sided p value of Student's t
    both        the package's (`two_sided_p`): the inverse of its interval, which unites Student's and Hall's

"contradicted" is the share of significant answers with 0 inside their own interval: the 95 % interval that is shown,
and the one at the level that the correction asks for, 1 − 5 %/60 (the first of Holm's steps: a later one may ask for
less). "found" is measured on other tables, in which ten of the 60 questions differ from 0 by +4.5 standard errors and
ten by −4.5: the share of these that is called significant, by sign (skewed items make the two unlike). Exponential and
log-normal items are skewed to the right; skewed to the left, the signs change places. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtr

from benchmarks.record_population import populations
from benchmarks.setting import finish
from lowmem_layers.game.estimators.weights import estimator_weights
from lowmem_layers.game.uncertainty.errors import Influence, contributions, influence_of
from lowmem_layers.game.uncertainty.intervals import mean_interval, two_sided_p
from lowmem_layers.game.uncertainty.multiplicity import adjusted

QUESTIONS = 60
LEVEL = 0.95
EFFECT = 4.5  # standard errors
N_EFFECTS = 10  # questions of each sign
ITEMS = (30, 100, 232, 1000)

# Items with mean 0 and standard deviation 1.
KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size) - 1.0,
    "log-normal(1)": lambda rng, size: (rng.lognormal(0.0, 1.0, size) - np.exp(0.5)) / np.sqrt(np.exp(2.0) - np.e),
}


def student_p(estimate: Influence) -> np.ndarray:
    """Test every estimate against 0 by Student's t alone. Shapes: (questions,)."""
    return 2.0 * stdtr(estimate.dof, -np.abs(estimate.value) / estimate.standard_error)


RULES: dict[str, Callable[[Influence], np.ndarray]] = {"student": student_p, "both": two_sided_p}


def measure(kind: str, n_items: int, tables: int, seed: int = 0) -> dict[str, Any]:
    """Draw tables without and with effects, and count what each rule says about them."""
    rng, codes = np.random.default_rng(seed), np.arange(n_items)
    effects = np.repeat([EFFECT, -EFFECT, 0.0], [N_EFFECTS, N_EFFECTS, QUESTIONS - 2 * N_EFFECTS]) / np.sqrt(n_items)
    covered = 0.0
    wrong, significant = dict.fromkeys(RULES, 0.0), dict.fromkeys(RULES, 0.0)
    contradicted = {rule: np.zeros(2) for rule in RULES}
    found = {rule: np.zeros(2) for rule in RULES}
    for _ in range(tables):
        items = KINDS[kind](rng, (n_items, QUESTIONS))
        # 1) Nothing differs: every significant answer is wrong.
        estimate = influence_of(items, codes)
        shown, corrected = (mean_interval(estimate, level) for level in (LEVEL, 1.0 - (1.0 - LEVEL) / QUESTIONS))
        holds_zero = np.array([(ci.low <= 0.0) & (ci.high >= 0.0) for ci in (shown, corrected)])  # (2, questions)
        covered += holds_zero[0].mean()
        for rule, p_value in RULES.items():
            called = adjusted(p_value(estimate)) < 1.0 - LEVEL
            wrong[rule] += called.any()
            significant[rule] += called.sum()
            contradicted[rule] += (called & holds_zero).sum(axis=1)
        # 2) Twenty of the questions differ.
        shifted = influence_of(items + effects, codes)
        for rule, p_value in RULES.items():
            called = adjusted(p_value(shifted)) < 1.0 - LEVEL
            found[rule] += called[:N_EFFECTS].mean(), called[N_EFFECTS : 2 * N_EFFECTS].mean()
    row: dict[str, Any] = {"kind": kind, "items": n_items, "tables": tables, "coverage": round(covered / tables, 4)}
    for rule in RULES:
        row[f"wrong {rule}"] = wrong[rule] / tables
        row[f"contradicted {rule}"] = (contradicted[rule] / max(significant[rule], 1)).round(3).tolist()
        row[f"found {rule}"] = (found[rule] / tables).round(3).tolist()
    return row


def of_record(folder: Path, n_tables: int) -> list[dict[str, Any]]:
    """Ask a run's own questions of its items, by log-likelihood, where nothing differs: any answer is wrong."""
    rows = []
    (table,) = populations(folder)["log-likelihood"]
    column = {removed: table.values[:, place] for place, removed in enumerate(table.coalitions)}
    pairs = [(i, i + 1) for i in range(table.n_players - 1)] if (0, 1) in column else []
    asked = {
        "drops": contributions(table, estimator_weights("ablation", table.coalitions, table.players)),
        "estimates": contributions(table, estimator_weights("neighbourhood", table.coalitions, table.players)),
    }
    if pairs:
        alone = [column[()] - column[(i,)] - column[(j,)] + column[i, j] for i, j in pairs]
        asked["interactions of neighbours"] = np.stack(alone, axis=1)
    for name, population in asked.items():
        population -= population.mean(axis=0)  # (items, questions)
        for n_items in (30, 60, 100, 232):
            rng, wrong = np.random.default_rng(0), dict.fromkeys(RULES, 0)
            for _ in range(n_tables):
                drawn = population[rng.integers(0, len(population), n_items)]
                estimate = influence_of(drawn, np.arange(n_items))
                for rule, p_value in RULES.items():
                    wrong[rule] += bool((adjusted(p_value(estimate)) < 1.0 - LEVEL).any())
            rows.append({"kind": name, "items": n_items} | {f"wrong {k}": v / n_tables for k, v in wrong.items()})
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Print a line a setting, and one JSON document on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="fewer tables")
    parser.add_argument("--record", type=Path, help="a finished run: its drops, estimates and interactions")
    options = parser.parse_args()
    options.tables = 50 if options.quick else options.tables
    rows: list[dict[str, Any]] = []
    if options.record:
        rows, options.record = of_record(options.record, options.tables), options.record.name
        finish({"benchmark": "significance", "rows": rows}, options)
        return
    for kind in KINDS:
        for n_items in ITEMS:
            rows.append(measure(kind, n_items, options.tables))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    finish({"benchmark": "significance", "rows": rows}, options)


if __name__ == "__main__":
    main()
