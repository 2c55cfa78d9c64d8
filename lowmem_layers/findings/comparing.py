"""Two records side by side: which sublayers differ, and how far the rankings agree."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa

from lowmem_layers.errors import UsageError
from lowmem_layers.findings.importance import ESTIMATORS, N_TOP, EstimatorName
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import minus
from lowmem_layers.game.answers.compare import Comparison, Walks, compare
from lowmem_layers.game.players.coalitions import coalition_name
from lowmem_layers.game.uncertainty.disattenuation import Corrected
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.uncertainty.multiplicity import Correction
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.record.spec import one_of

_PROTOCOL = (
    "quant", "limit", "max_removed", "change", "players", "coalitions", "permutations", "fewshot", "bos", "window",
    "stride", "revision", "requantize", "until", "seed",
)  # fmt: skip
_CORRECTIONS: tuple[Correction, ...] = get_args(Correction)
CORRECTIONS = {"holm": "Holm", "bh": "Benjamini–Hochberg"}


def compare_runs(
    a: Run,
    b: Run,
    value: str | None = None,
    estimator: str | None = None,
    max_removed: int | None = None,
    level: float = 0.95,
    correction: str = "holm",
) -> dict[str, Comparison]:
    """Compare two runs task by task, and the mean over tasks (`all`) where several are in both.

    Runs of one task each are compared whatever their tasks are. `estimator` None is the one for which both runs'
    coalitions were measured. Items of one task are the same where they have the same name, gold answer and lengths of
    choices.

    Raises:
        UsageError: no task in common, other sublayers, the same data but for a few items, or a value or estimator that
            one of the runs does not allow.
    """
    # 1) what is compared, by which estimator
    _refuse_namesakes(a, b)
    name = _estimator(a, b, estimator)
    corrected = one_of("--correction", correction, _CORRECTIONS)
    pairs = _pairs(a, b, value)
    for task in pairs:
        one, _, two = task.partition(" / ")
        judged = value or a.metric(one), value or b.metric(two or one)
        if judged[0] != judged[1]:
            raise UsageError(f"A is judged by {judged[0]}, B by {judged[1]}", "name one value for both with --value")
    # 2) task by task, then the mean over tasks
    known, walks = name, None
    if known == "permutation":
        first, second = a.manifest.design, b.manifest.design
        known, walks = "neighbourhood", (Walks(first.orders, first.cuts), Walks(second.orders, second.cuts))
    groups = {task: ([one], [two]) for task, (one, two) in pairs.items()}
    if len(pairs) > 1:
        groups["all"] = [one for one, _ in pairs.values()], [two for _, two in pairs.values()]
    return {
        task: compare(
            of_a,
            of_b,
            known,
            walks=walks,
            max_removed=max_removed,
            level=level,
            correction=corrected,
            top_k=min(N_TOP, of_a[0].n_players),
        )
        for task, (of_a, of_b) in groups.items()
    }


def differences(a: Run, b: Run) -> list[str]:
    """Name what is not the same in two runs' models, options and tasks."""
    found = []
    models = a.manifest.model, b.manifest.model
    if models[0].id != models[1].id:
        found.append(f"model ({models[0].id} / {models[1].id})")
    elif models[0].fingerprint != models[1].fingerprint:
        found.append("the model's weights")
    pairs = {name: (getattr(a.manifest.resolved, name), getattr(b.manifest.resolved, name)) for name in _PROTOCOL}
    pairs["dtype"] = models[0].dtype, models[1].dtype
    pairs["packing"] = a.manifest.packing, b.manifest.packing
    found += [f"{name} ({_said(one)} / {_said(two)})" for name, (one, two) in pairs.items() if one != two]
    if a.tasks != b.tasks:
        found.append(f"tasks ({', '.join(a.tasks)} / {', '.join(b.tasks)})")
    return found


def comparison_table(found: dict[str, Comparison]) -> pa.Table:
    """Lay out the differences A − B: one row for each task and sublayer."""
    return pa.concat_tables(
        pa.table(
            {
                "task": [task] * len(one.players),
                "sublayer": list(one.players),
                "estimator": [one.estimator] * len(one.players),
                "value_a": one.value_a,
                "value_b": one.value_b,
                "difference": one.difference,
                "ci_low": one.ci.low,
                "ci_high": one.ci.high,
                "p_adjusted": one.p_adjusted,
                "significant": [str(bool(each)).lower() for each in one.significant],
            }
        )
        for task, one in found.items()
    )


def agreement_table(found: dict[str, Comparison]) -> pa.Table:
    """Lay out how far the rankings agree: one row for each task."""
    rows = [
        {
            "task": task,
            "items_a": one.n_items[0],
            "items_b": one.n_items[1],
            "paired": str(one.paired).lower(),
            "kendall": one.agreement.kendall,
            "kendall_low": one.agreement.kendall_ci.low,
            "kendall_high": one.agreement.kendall_ci.high,
            "spearman": one.agreement.spearman,
            "spearman_low": one.agreement.spearman_ci.low,
            "spearman_high": one.agreement.spearman_ci.high,
            "resolved": one.agreement.resolved,
            "opposite": one.agreement.opposite,
            "top": one.agreement.top_k,
            "overlap": one.agreement.overlap,
            "overlap_low": one.agreement.overlap_ci.low,
            "overlap_high": one.agreement.overlap_ci.high,
            "changed": int(np.sum(one.significant)),
            "players": len(one.players),
            "correction": one.correction,
            "spearman_corrected": one.corrected.spearman,
            "spearman_corrected_low": one.corrected.spearman_ci.low,
            "spearman_corrected_high": one.corrected.spearman_ci.high,
            "pearson_corrected": one.corrected.pearson,
            "pearson_corrected_low": one.corrected.pearson_ci.low,
            "pearson_corrected_high": one.corrected.pearson_ci.high,
            "kendall_corrected": one.corrected.kendall,
            "kendall_corrected_low": one.corrected.kendall_ci.low,
            "kendall_corrected_high": one.corrected.kendall_ci.high,
        }
        for task, one in found.items()
    ]
    return pa.Table.from_pylist(rows)


def agreement_lines(found: dict[str, Comparison]) -> list[str]:
    """Say in words how far the rankings agree and which players changed: one line for each task."""
    lines = []
    for task, one in found.items():
        same, (items_a, items_b), (given_a, given_b) = one.agreement, one.n_items, one.n_given
        # 1) which items were compared
        if not one.paired:
            items = f"{items_a:,} and {items_b:,} items, not paired"
        elif one.n_items == one.n_given:
            items = f"{items_a:,} items, paired"
        else:
            items = f"the {items_a:,} items that A's {given_a:,} and B's {given_b:,} have in common, paired"
        # 2) how far the order is the same, and how much of it is certain
        certain = "no pair's order is certain in both"
        if same.resolved > 0:
            certain = (
                f"the order of {100 * same.resolved:.0f} % of pairs is certain in both, "
                f"{100 * same.opposite:.0f} % of these opposite"
            )
        # 3) which players changed
        changed = ", ".join(name for name, yes in zip(one.players, one.significant, strict=True) if yes)
        lines.append(
            f"{task} ({items}): "
            f"{correlation_words('Spearman', same.spearman, same.spearman_ci)}, "
            f"{correlation_words('Kendall', same.kendall, same.kendall_ci)}; "
            f"{corrected_words(one.corrected)}; "
            f"{certain}; "
            f"{same.overlap} of the top {same.top_k} are the same{bounds(same.overlap_ci, 0)}; "
            f"{int(one.significant.sum())} of {len(one.players)} changed significantly "
            f"({CORRECTIONS[one.correction]}, {100 * one.level:g} %){': ' + changed if changed else ''}"
        )
    return lines


def correlation_words(name: str, value: float, ci: Interval[float]) -> str:
    """Say a rank correlation with its interval, or why there is none."""
    if np.isnan(value):
        return f"no {name} (all values of a run are tied, or one is unknown)"
    return minus(f"{name} {value:.2f}{bounds(ci, 2)}")


def corrected_words(found: Corrected) -> str:
    """Say Spearman's and Kendall's correlation of the true importances; or that noise is all that differs."""
    if np.isnan(found.spearman):
        return "without noise unknown (a run's values differ by no more than noise, or one is unknown)"
    kendall = "" if np.isnan(found.kendall) else f", {correlation_words('Kendall', found.kendall, found.kendall_ci)}"
    return f"without noise {correlation_words('Spearman', found.spearman, found.spearman_ci)}{kendall}"


def bounds(ci: Interval[float], decimals: int) -> str:
    """Write an interval in brackets behind a number; nothing where it is unknown."""
    return "" if np.isnan([ci.low, ci.high]).any() else f" [{ci.low:.{decimals}f}, {ci.high:.{decimals}f}]"


def _estimator(a: Run, b: Run, asked: str | None) -> EstimatorName:
    natural = a.manifest.design.estimator, b.manifest.design.estimator
    if asked is None and natural[0] != natural[1]:
        raise UsageError(
            f"A was made for the {natural[0]} estimate, B for the {natural[1]} estimate",
            "name one that both allow; --estimator ablation always works",
        )
    name = natural[0] if asked is None else one_of("--estimator", asked, ESTIMATORS)
    if name == "permutation" and not (a.manifest.design.orders and b.manifest.design.orders):
        raise UsageError(
            "no removal orders were measured in one of the runs",
            "they are with: lowmem-layers run --coalitions permutations",
        )
    return name


def _refuse_namesakes(a: Run, b: Run) -> None:
    """Refuse players of one name that remove other sublayers.

    Raises:
        UsageError: a player is one thing in A and another in B.
    """
    sides = []
    for run in (a, b):
        design = run.manifest.design
        alone = [(place,) for place in range(len(design.players))]
        removed = alone if design.grouping is None else design.grouping.expand_all(alone)
        sides.append(
            {
                name: coalition_name(each, run.manifest.sublayers)
                for name, each in zip(design.names, removed, strict=True)
            }
        )
    for name in sides[0].keys() & sides[1].keys():
        if sides[0][name] != sides[1][name]:
            raise UsageError(
                f"{name} stands for {sides[0][name]} in A and for {sides[1][name]} in B",
                "compare runs with the same --players",
            )


def _pairs(a: Run, b: Run, value: str | None) -> dict[str, tuple[ValueTable, ValueTable]]:
    """Pair the tables of tasks that both runs have; items keep their names only where the same items bear them."""
    first = {table.task: table for table in a.value_tables(value)}
    second = {table.task: table for table in b.value_tables(value)}
    common = [task for task in first if task in second]
    if not common and len(first) == len(second) == 1:
        (one, table_a), (two, table_b) = *first.items(), *second.items()
        return {f"{one} / {two}": (table_a, table_b)}
    if not common:
        raise UsageError(
            f"the runs have no task in common: {', '.join(first)} and {', '.join(second)}",
            "compare runs of the same tasks, or two runs of one task each",
        )
    # Items of the same name are the same where gold answer and choices are, whatever the tokenizer. A task that is the
    # same but for a few items is a data file that was edited; one whose items are other ones altogether is not paired.
    rows = {(row.task, row.id): (row.gold, row.chars, row.sizes) for row in a.item_rows}
    others = {(row.task, row.id): (row.gold, row.chars, row.sizes) for row in b.item_rows}
    pairs = {}
    for task in common:
        named = [key for key in rows if key[0] == task and key in others]
        unlike = [key[1] for key in named if rows[key] != others[key]]
        if 0 < len(unlike) <= len(named) / 2:
            raise UsageError(
                f"{len(unlike)} of {len(named)} items of {task} have other choices or another gold answer in B: "
                f"{', '.join(unlike[:5])}{', …' if len(unlike) > 5 else ''}",
                "measure both runs on the same data",
            )
        pairs[task] = first[task], replace(second[task], items=None) if unlike else second[task]
    return pairs


def _said(option: object) -> str:
    return "none" if option is None else str(option)
