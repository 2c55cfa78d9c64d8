"""Stopping early: after every tile, whether the items so far prove what the user wants to know."""

from __future__ import annotations

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.estimators.weights import Estimator
from lowmem_layers.game.uncertainty.stopping import StopDecision, decide, parse_statement


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


def proven(run: Run, statement: str | None, value: str | None) -> str:
    """State what the finished items prove; empty where that is not yet what is asked."""
    if statement is None or not run.every_task_begun:
        return ""
    decision = _decided(run, statement, value)
    return decision.text if decision.holds else ""


def verdict(run: Run) -> str:
    """Say how a run with a statement to stop at stands: what is proven, or what is not; empty without a statement."""
    until, value = run.manifest.resolved.until, run.manifest.resolved.value
    if run.manifest.stopped:
        early = run.n_items_done < run.manifest.n_items
        return f"{'stopped early' if early else 'certain with the last items'}: {run.manifest.stopped}"
    if until is None or not run.every_task_begun:
        return ""
    decision = _decided(run, until, value)
    if decision.holds:
        return f"certain: {decision.text}"
    return f"{until} is not certain after {decision.n_items:,} of {run.manifest.n_items:,} items: {decision.detail}"


def _decided(run: Run, statement: str, value: str | None) -> StopDecision:
    known: Estimator = run.manifest.design.estimator  # type: ignore[assignment]
    return decide(run.value_tables(value), statement, estimator=known, n_total=run.manifest.n_items)
