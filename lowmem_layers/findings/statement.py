"""Stopping early: do the items finished so far prove the statement of `--until`?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.words import minus
from lowmem_layers.game.uncertainty.stopping import StopDecision, decide, parse_statement
from lowmem_layers.record.values import CollectedValues

if TYPE_CHECKING:
    from lowmem_layers.findings.run import Run


def check_statement(statement: str | None, n_players: int, max_removed: int) -> None:
    """Refuse a statement that cannot be decided, before anything is measured.

    Raises:
        UsageError: no such statement, more sublayers on top than there are, or nothing is removed.
    """
    if statement is None:
        return
    parsed = parse_statement(statement)
    if parsed.kind == "top" and parsed.top_k >= n_players:
        raise UsageError(f"--until {statement}: the model has {n_players} players", "ask for fewer than there are")
    if max_removed < 1:
        raise UsageError("--until decides about removals, and none are asked for", "use --max-removed 1 or more")


def verdict(run: Run) -> str:
    """Say what a run with a statement to stop at has proven, or has not; empty without a statement."""
    manifest, until = run.manifest, run.manifest.resolved.until
    if manifest.stopped:
        early = run.n_items_done < manifest.n_items
        return f"{'stopped early' if early else 'certain with the last items'}: {manifest.stopped}"
    decision = None if until is None else judge(run.values, until, manifest.resolved.value)
    if decision is None:
        return ""
    if decision.holds:
        return f"certain: {decision.text}"
    return f"{until} is not certain after {decision.n_items:,} of {manifest.n_items:,} items: {decision.detail}"


def judge(values: CollectedValues, statement: str | None, value: str | None) -> StopDecision | None:
    """Decide whether the finished items prove a statement.

    None where there is no statement, where a task has no finished item, and for removal orders.
    """
    estimator = values.manifest.design.estimator
    if statement is None or estimator == "permutation" or not values.every_task_begun:
        return None
    found = decide(values.tables(value), statement, estimator=estimator, n_total=values.manifest.n_items)
    return replace(found, detail=minus(found.detail))
