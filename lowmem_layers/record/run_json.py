"""run.json on disk: the manifest as a file, written whole, and checked whole when it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from lowmem_layers.errors import RecordError, UsageError
from lowmem_layers.game.players.coalitions import MAX_EXACT_PLAYERS
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.players.groups import Group, Grouping
from lowmem_layers.game.players.player import parse_player
from lowmem_layers.record.files import is_text, write_text
from lowmem_layers.record.items import no_collections
from lowmem_layers.record.manifest import (
    Count,
    EngineRecord,
    Json,
    MachineRecord,
    Manifest,
    ModelRecord,
    Seconds,
    Status,
    TaskRecord,
    gathered,
)
from lowmem_layers.record.spec import Specification, StudySpec
from lowmem_layers.record.tile_plan import TilePlan, parse_tile, spell_tile

SCHEMA = 1
RUN_FILE = "run.json"
MAX_ITEMS = 1_000_000  # so that a damaged or hostile file cannot fill the memory
MAX_BYTES = 1 << 26
START_ANEW = "start the run again in another folder with --out, or remove this one"

_RESOLVED_ALWAYS = ("model", "quant", "tasks", "max_removed", "seed")  # options that every version has recorded
_NUMBERS = re.compile(r"(\d{1,9}( \d{1,9})*)?", re.ASCII)


@dataclass(frozen=True)
class _Options:
    """The part `spec` of the file."""

    passed: StudySpec
    resolved: StudySpec


@dataclass(frozen=True)
class _File:
    """run.json as it lies on disk; keys that are not listed here are ignored.

    `players` joins the sublayers' names by spaces, `removed`, `orders` and `groups` join indices by spaces, `tiles`
    holds ranges of items.
    """

    status: Status
    created: str
    elapsed_s: Seconds
    spec: _Options
    identity: dict[str, Json]
    model: ModelRecord
    data: tuple[TaskRecord, ...]
    machine: MachineRecord
    engine: EngineRecord
    versions: dict[str, str]
    work: Count
    players: str
    removed: tuple[str, ...]
    tiles: tuple[str, ...]
    stopped: str = ""
    groups: tuple[tuple[str, str], ...] = ()
    orders: tuple[str, ...] = ()
    cuts: tuple[Count, ...] = ()


# Fields that the manifest has as they are in the file
_AS_STORED = tuple({each.name for each in fields(_File)} & {each.name for each in fields(Manifest)})


class _Damage(ValueError):
    """Something in run.json is not as it was written; the message names the field."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write run.json, whole or not at all.

    Raises:
        RecordError: the folder cannot be written.
        UsageError: there are more items than a record may have.
    """
    if manifest.n_items > MAX_ITEMS:
        raise UsageError(f"{manifest.n_items:,} items are more than {MAX_ITEMS:,}", "take fewer with --limit")
    design = manifest.design
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "status": manifest.status,
        "created": manifest.created,
        "elapsed_s": manifest.elapsed_s,
        "stopped": manifest.stopped,
        "spec": {"passed": manifest.passed.to_json(), "resolved": manifest.resolved.to_json()},
        "identity": dict(manifest.identity),
        "seed": manifest.resolved.seed,
        "model": manifest.model.to_json(),
        "data": [msgspec.to_builtins(task) for task in manifest.data],
        "machine": msgspec.to_builtins(manifest.machine),
        "engine": manifest.engine.to_json(),
        "versions": dict(manifest.versions),
        "work": manifest.work,
        "players": " ".join(manifest.sublayers),
    }
    # What most runs have in common is not said: each sublayer plays on its own, and no orders are drawn.
    if design.grouping is not None:
        found["groups"] = [[group.name, " ".join(map(str, group.members))] for group in design.grouping.groups]
    if design.orders:
        found["orders"] = [" ".join(map(str, order)) for order in design.orders]
        found["cuts"] = list(design.cuts)
    found["removed"] = [" ".join(map(str, removed)) for removed in manifest.plan.coalitions]
    found["tiles"] = [spell_tile(tile) for tile in manifest.plan.tiles]
    found["checksum"] = checksum(json.loads(json.dumps(found)))  # of what a reader will find
    write_text(folder / RUN_FILE, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def checksum(stored: Mapping[str, Any]) -> str:
    """Hash everything that run.json says but for its checksum: sha256 of the JSON with sorted keys."""
    rest = {name: value for name, value in stored.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read run.json and check everything that it says.

    Raises:
        RecordError: it is missing, damaged (the field is named), or of a later version of this package.
    """
    path = folder / RUN_FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _Damage(f"it has more than {MAX_BYTES:,} bytes")
        written = path.read_text(encoding="utf-8")
        stored = json.loads(written)
        # JSON spells zero bytes and halves of surrogates, which are no text, as \u0000 and \ud800
        for where, text in _texts(stored, "") if "\\u" in written else ():
            if not is_text(text):
                raise _Damage(f"{where} is no text: {text!a}")
        schema = stored.get("schema") if isinstance(stored, dict) else None
        if schema != SCHEMA:
            later = isinstance(schema, int) and schema > SCHEMA
            hint = "a later version of lowmem-layers wrote it: update yours" if later else START_ANEW
            raise RecordError(f"{path} has schema {schema!r:.40}; this version reads {SCHEMA}", hint)
        manifest = _from_json(stored)
        if stored.get("checksum", "") not in ("", checksum(stored)):  # records of 0.2 and before have none
            raise RecordError(
                f"{path} is not as it was written: its checksum is another",
                'if you changed it on purpose, remove its line "checksum"; else start the run again in another folder',
            )
        return manifest
    except FileNotFoundError as error:
        raise RecordError(
            f"{folder} is not a run folder: it holds no {RUN_FILE}", "lowmem-layers run writes one; its end says where"
        ) from error
    except OSError as error:  # a name that is too long, a closed folder, a broken disk
        raise RecordError(f"cannot read {path}: {error.strerror}", "give the folder of a run") from error
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")  # msgspec's own words: the place comes last
        place = f"{where.rstrip('`')}: " if where else ""
        raise RecordError(f"{path} is damaged: {place}{what}", START_ANEW) from error
    except RecursionError as error:
        raise RecordError(f"{path} is damaged: it is nested too deeply", START_ANEW) from error
    except ValueError as error:  # no JSON, no UTF-8, or a field that contradicts another
        raise RecordError(f"{path} is damaged: {error}", START_ANEW) from error


def _texts(node: Any, where: str) -> Iterator[tuple[str, str]]:
    """Walk through a JSON value: every text in it, keys too, and where it stands."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield where or "a key", name
            yield from _texts(value, f"{where}.{name}" if where else name)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _texts(value, f"{where}[{place}]")


@no_collections()
def _from_json(stored: dict[str, Any]) -> Manifest:
    """Decode run.json, then check what types do not say.

    Raises:
        msgspec.ValidationError: a field is missing or has another type.
        ValueError: a field contradicts another one.
    """
    # 1) types
    for name, kind, rest in (("model", ModelRecord, "placement"), ("engine", EngineRecord, "more")):
        if isinstance(stored.get(name), dict):
            stored = stored | {name: gathered(stored[name], kind, rest)}
    file = msgspec.convert(stored, _File)
    # 2) options: every choice is checked once more; what an earlier version did not know keeps its earlier meaning
    missing = [name for name in _RESOLVED_ALWAYS if stored["spec"]["resolved"].get(name) is None]  # no default there
    if missing:
        raise _Damage(f"spec.resolved.{missing[0]} is missing")
    try:
        resolved = replace(file.spec.resolved.resolved(), passed=file.spec.passed)
    except UsageError as error:
        raise _Damage(f"spec.resolved: {error.message}") from error
    # 3) who plays, and what was removed
    design = _design(file, resolved)
    coalitions = tuple(_indices(text, len(design.sublayers), "removed") for text in file.removed)
    if any(list(removed) != sorted(set(removed)) for removed in coalitions) or len(set(coalitions)) < len(coalitions):
        raise _Damage("removed: a coalition is not sorted, or occurs twice")
    if () not in coalitions:
        raise _Damage("removed: the full model is not among the coalitions")
    # 4) every item in one tile
    tasks, n_items = [task.task for task in file.data], sum(task.items for task in file.data)
    if len(set(tasks)) < len(tasks) or not tasks:
        raise _Damage(f"data: {len(tasks)} tasks, {len(set(tasks))} of them distinct")
    if n_items > MAX_ITEMS:
        raise _Damage(f"data: {n_items} items are more than {MAX_ITEMS:,}, the most that a run may have")
    tiles: list[tuple[int, ...]] = []
    n_held = 0
    for text in file.tiles:
        tiles.append(parse_tile(text, n_items))
        n_held += len(tiles[-1])
        if n_held > n_items:
            raise _Damage(f"tiles: they hold more than the {n_items} items that there are")
    held = sorted(index for tile in tiles for index in tile)
    if not all(tiles) or len(held) != n_items or held != list(range(n_items)):
        raise _Damage(f"tiles: they do not hold each of {n_items} items once")
    as_stored = {name: getattr(file, name) for name in _AS_STORED}
    return Manifest(resolved=resolved, design=design, plan=TilePlan(coalitions, tuple(tiles)), **as_stored)


def _design(file: _File, resolved: Specification) -> Design:
    try:
        sublayers = tuple(map(parse_player, file.players.split()))
        groups = tuple(Group(name, _indices(members, len(sublayers), "groups")) for name, members in file.groups)
        grouping = Grouping(groups) if groups else None
    except UsageError as error:
        raise _Damage(f"players or groups: {error.message}") from error
    if not sublayers or len(set(sublayers)) < len(sublayers):
        raise _Damage(f"players: {len(sublayers)} sublayers, {len(set(sublayers))} of them distinct")
    n_players = len(sublayers) if grouping is None else len(grouping.groups)
    orders = tuple(_indices(order, n_players, "orders") for order in file.orders)
    if any(sorted(order) != list(range(n_players)) for order in orders):
        raise _Damage(f"orders: one does not hold each of {n_players} players once")
    if len(file.cuts) != len(orders) or max(file.cuts, default=0) > n_players:
        raise _Damage(f"cuts: {len(file.cuts)} of at most {n_players} removals do not fit {len(orders)} orders")
    if bool(orders) != (resolved.coalitions == "permutations"):
        raise _Damage(f"orders: there are {len(orders)}, with --coalitions {resolved.coalitions}")
    largest = {"windows": resolved.max_removed <= n_players, "all": n_players <= MAX_EXACT_PLAYERS}
    if not largest.get(resolved.coalitions, True):
        raise _Damage(f"players: {n_players} are too few or too many for --coalitions {resolved.coalitions}")
    return Design(sublayers, resolved.coalitions, resolved.max_removed, grouping, orders, file.cuts)


def _indices(spelled: str, end: int, where: str) -> tuple[int, ...]:
    """Read indices below `end`, joined by spaces."""
    if _NUMBERS.fullmatch(spelled) is None:
        raise _Damage(f"{where}: {spelled!r:.40} is no list of numbers")
    found = tuple(map(int, spelled.split()))
    if max(found, default=0) >= end:
        raise _Damage(f"{where}: {max(found)} is outside the {end} that there are")
    return found
