"""Which sublayers go: named by the user, or chosen by the record on one half of the items.

The other half is kept for the measurement afterwards. The halves are made of whole clusters (items that share a
passage) by a hash of task and cluster, so that every choice made from a run leaves the same items alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowmem_layers.acting.forms import Form
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import counted, minus
from lowmem_layers.game.answers.foresight import Foresight, choose_greedily, foresee, unknown_to
from lowmem_layers.game.players.coalitions import Removed, coalition_name, parse_coalition
from lowmem_layers.game.players.groups import group_players
from lowmem_layers.game.uncertainty.intervals import Interval
from lowmem_layers.game.values.table import ValueTable
from lowmem_layers.model.change import REMOVE
from lowmem_layers.tasks.metrics import Metric, metric_named

_ONE = "give one of --sublayers NAMES, --remove K, --decoder-layers K or --lose-at-most X"


@dataclass(frozen=True)
class Request:
    """How the user says what goes: exactly one of these. Units: `lose_at_most` points for accuracies, else nats."""

    sublayers: str | None = None
    remove: int | None = None
    decoder_layers: int | None = None
    lose_at_most: float | None = None

    def __post_init__(self) -> None:
        ways = (self.sublayers, self.remove, self.decoder_layers, self.lose_at_most)
        n_given = sum(way is not None for way in ways)
        if n_given != 1:
            raise UsageError(f"{n_given} of four ways to say what goes are given", _ONE)
        if self.sublayers is not None and not _listed(self.sublayers):
            raise UsageError("--sublayers names nothing", "name sublayers like attn.20,ffn.21")
        if self.lose_at_most is not None and not math.isfinite(self.lose_at_most):
            raise UsageError(f"--lose-at-most {self.lose_at_most} is no loss", "give a number, such as 1.0")


@dataclass(frozen=True)
class Choice:
    """What goes, and what that is expected to cost on the items by which it was chosen.

    `removed` are positions of sublayers, `units` what was chosen among (one entry for a sublayer or decoder layer).
    `unknown` says what the expected loss does not know. Units: `loss` and `ci` in `metric.unit`; nan where nothing is
    known.
    """

    removed: Removed
    names: tuple[str, ...]
    units: tuple[Removed, ...]
    metric: Metric
    loss: float
    ci: Interval[float]
    n_items: int
    unknown: tuple[str, ...] = ()


def is_held_out(task: str, cluster: str) -> bool:
    """Tell whether the items of a cluster are kept for the measurement: about half of all clusters are."""
    return hashlib.sha256(f"{task}\0{cluster}".encode()).digest()[0] % 2 == 1


def half_tables(run: Run, value: str | None, *, held_out: bool) -> list[ValueTable]:
    """Give a run's tables of values with one half of the items.

    Raises:
        UsageError: a task has fewer than two clusters in this half, so that nothing has an interval.
    """
    clusters = {(row.task, row.id): row.cluster for row in run.item_rows}
    found = []
    for table in run.value_tables(value):
        ids = table.items or ()
        rows = [i for i, one in enumerate(ids) if is_held_out(table.task, clusters[table.task, one]) == held_out]
        half = table.take_items(rows) if rows else None
        if half is None or half.n_clusters < 2:
            raise UsageError(
                f"{table.task} has {counted(table.n_items, 'item')}: too few for one half to choose by and one to "
                "measure with",
                "measure more items, with a larger --limit or another task",
            )
        found.append(half)
    return found


def the_metric(run: Run, value: str | None) -> Metric:
    """Name the metric by which is chosen: the one given, else the tasks' own.

    Raises:
        UsageError: the tasks' own metrics have different units.
    """
    metrics = [metric_named(value or run.metric(task)) for task in run.tasks]
    if len({metric.unit for metric in metrics}) > 1:
        raise UsageError(
            f"the tasks are judged in different units: {', '.join(sorted({m.unit for m in metrics}))}",
            "name one value for all with --value",
        )
    return metrics[0]


def choose(run: Run, request: Request, form: Form, value: str | None, level: float = 0.95) -> Choice:
    """Choose what goes, by the half of the items that is not held out.

    Raises:
        UsageError: the run does not have the coalitions that the choice needs, or so many cannot go.
    """
    design, names = run.manifest.design, run.manifest.sublayers
    if run.manifest.change != REMOVE:
        raise UsageError(
            f"{run.folder}: its sublayers were {run.manifest.change.words}, so what removing them costs is not known",
            "use a run without --change",
        )
    metric, tables = the_metric(run, value), half_tables(run, value, held_out=False)
    # 1) what may go as one, by sublayers and by the run's own players
    by_layer = form.whole_layers or request.decoder_layers is not None
    grouping = group_players(design.sublayers, "decoder-layer" if by_layer else "sublayer")
    units = [group.members for group in grouping.groups]
    if request.remove is not None and by_layer:
        raise UsageError(
            f"--form {form.name} removes whole decoder layers, --remove counts sublayers", "give --decoder-layers K"
        )
    # 2) growing removals, or the one that is named
    if request.sublayers is not None:
        named = parse_coalition("+".join(_listed(request.sublayers)), names)
        if (players := _players_of(run, named)) is None:
            unknown = ("the run did not remove these sublayers as players of its own: nothing is known of their loss",)
            none = float("nan")
            return Choice(named, _names(named, names), tuple(units), metric, none, Interval(none, none), 0, unknown)
        path = [players]
    else:
        steps = request.remove or request.decoder_layers or len(units) - 1
        path = choose_greedily(tables, _units_of_players(run, units), steps, kept=1)
    # 3) what that is expected to cost, and where to stop
    seen = foresee(tables, path, level)
    step = len(path) - 1
    if request.lose_at_most is not None:
        allowed = [i for i in range(len(path)) if seen.ci.high[i] * metric.scale <= request.lose_at_most]
        if not allowed:
            least = f"{seen.ci.high[0] * metric.scale:.2f} {metric.unit} (upper end of the {100 * level:g} % interval)"
            raise UsageError(
                minus(f"even the removal of {coalition_name(path[0], run.players)} may cost {least}"),
                "allow a larger loss, or measure more items",
            )
        step = max(allowed)
    removed = path[step] if design.grouping is None else design.grouping.expand(path[step])
    return Choice(
        removed, _names(removed, names), tuple(units), metric, float(seen.loss[step]) * metric.scale,
        seen.ci.at(step).times(metric.scale), sum(table.n_items for table in tables),
        tuple(unknown_to(tables, path[step])),
    )  # fmt: skip


def expected_loss(run: Run, removals: Sequence[Removed], value: str | None, level: float = 0.95) -> Foresight | None:
    """Foresee what removals of sublayers cost, by the items that are not held out; None where the run cannot tell."""
    players = [_players_of(run, removed) for removed in removals]
    if any(each is None for each in players):
        return None
    tables = half_tables(run, value, held_out=False)
    return foresee(tables, [each for each in players if each is not None], level)


def _units_of_players(run: Run, units: Sequence[Removed]) -> list[Removed]:
    """Write what may go as one by the run's players.

    Raises:
        UsageError: the run's players are not what is to be removed.
    """
    found = [players for unit in units if (players := _players_of(run, unit)) is not None]
    if len(found) < len(units):
        raise UsageError(
            f"the run's players are {', '.join(run.players[:3])}, …: not what is to be removed",
            "use a run of the same kind of --players, or name what goes with --sublayers",
        )
    return found


def _players_of(run: Run, removed: Removed) -> Removed | None:
    """Write a removal of sublayers as one of the run's players; None where it cuts through a group."""
    grouping = run.manifest.design.grouping
    if grouping is None:
        return removed
    places = tuple(place for place, group in enumerate(grouping.groups) if set(group.members) <= set(removed))
    return places if grouping.expand(places) == removed else None


def _listed(sublayers: str) -> list[str]:
    return [name for part in sublayers.replace("+", ",").split(",") if (name := part.strip())]


def _names(removed: Removed, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names[position] for position in removed)
