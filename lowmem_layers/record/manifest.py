"""run.json: what a run is, so that its numbers can be trusted and its folder recognised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_layers.errors import RecordError, UsageError
from lowmem_layers.game.players.design import Design
from lowmem_layers.game.players.groups import Group, Grouping
from lowmem_layers.game.players.player import parse_player
from lowmem_layers.record.files import write_text
from lowmem_layers.record.tile_plan import TilePlan, parse_tile, spell_tile

SCHEMA = 1
RUN_FILE = "run.json"
START_ANEW = "start the run again in another folder with --out, or remove this one"


@dataclass(frozen=True)
class Manifest:
    """Everything run.json says.

    `identity` holds the resolved options that decide the numbers, `data` one entry a task, `machine` what the numbers'
    last bits hang on (threads, device). `stopped` states what was proven when the run stopped early.
    """

    status: str
    created: str
    passed: Mapping[str, Any]
    resolved: Mapping[str, Any]
    identity: Mapping[str, Any]
    model: Mapping[str, Any]
    data: tuple[Mapping[str, Any], ...]
    machine: Mapping[str, Any]
    engine: Mapping[str, Any]
    versions: Mapping[str, str]
    players: tuple[str, ...]
    plan: TilePlan
    game: Design
    work: int
    seed: int
    elapsed_s: float = 0.0
    stopped: str = ""

    @property
    def n_items(self) -> int:
        """Count the items of all tasks."""
        return sum(int(task["items"]) for task in self.data)

    def with_status(self, status: str, elapsed_s: float) -> Manifest:
        """Give the same record with another status, and more time on its account."""
        return replace(self, status=status, elapsed_s=round(self.elapsed_s + elapsed_s, 3))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write run.json, whole or not at all.

    Raises:
        RecordError: the folder cannot be written.
    """
    write_text(folder / RUN_FILE, json.dumps(_to_json(manifest), indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read run.json.

    Raises:
        RecordError: it is missing, damaged, or of a later version of this package.
    """
    path = folder / RUN_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecordError(
            f"{folder} is not a run folder: it holds no {RUN_FILE}", "lowmem-layers run writes one; its end says where"
        ) from error
    except (NotADirectoryError, PermissionError) as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", "give the folder of a run") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is damaged: {error}", START_ANEW) from error
    return _from_json(stored, path)


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "status": manifest.status,
        "created": manifest.created,
        "elapsed_s": manifest.elapsed_s,
        "stopped": manifest.stopped,
        "spec": {"passed": dict(manifest.passed), "resolved": dict(manifest.resolved)},
        "identity": dict(manifest.identity),
        "seed": manifest.seed,
        "model": dict(manifest.model),
        "data": [dict(task) for task in manifest.data],
        "machine": dict(manifest.machine),
        "engine": dict(manifest.engine),
        "versions": dict(manifest.versions),
        "work": manifest.work,
        "players": " ".join(manifest.players),
        **_game_to_json(manifest.game),
        "removed": [" ".join(map(str, removed)) for removed in manifest.plan.coalitions],
        "tiles": [spell_tile(tile) for tile in manifest.plan.tiles],
    }


def _game_to_json(game: Design) -> dict[str, Any]:
    """Write what is not the plain game of all sublayers' windows."""
    found: dict[str, Any] = {}
    if game.grouping is not None:
        found["groups"] = [[group.name, " ".join(map(str, group.members))] for group in game.grouping.groups]
    if game.orders:
        found["orders"] = [" ".join(map(str, order)) for order in game.orders]
        found["cuts"] = list(game.cuts)
    return found


def _game_from_json(stored: Mapping[str, Any]) -> Design:
    resolved = stored["spec"]["resolved"]
    groups = tuple(Group(str(name), _numbers(members)) for name, members in stored.get("groups", ()))
    return Design(
        sublayers=tuple(map(parse_player, stored["players"].split())),
        coalitions=resolved.get("coalitions", "windows"),
        max_removed=int(resolved["max_removed"]),
        grouping=Grouping(groups) if groups else None,
        orders=tuple(map(_numbers, stored.get("orders", ()))),
        cuts=tuple(map(int, stored.get("cuts", ()))),
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(index) for index in text.split())


def _from_json(stored: Any, path: Path) -> Manifest:
    schema = stored.get("schema") if isinstance(stored, dict) else None
    if schema != SCHEMA:
        raise RecordError(f"{path} has schema {schema}; this version reads {SCHEMA}", START_ANEW)
    try:
        return Manifest(
            status=stored["status"],
            created=stored["created"],
            passed=stored["spec"]["passed"],
            resolved=stored["spec"]["resolved"],
            identity=stored["identity"],
            model=stored["model"],
            data=tuple(stored["data"]),
            machine=stored["machine"],
            engine=stored["engine"],
            versions=stored["versions"],
            players=tuple(stored["players"].split()),
            plan=TilePlan(
                tuple(map(_numbers, stored["removed"])),
                tuple(parse_tile(tile) for tile in stored["tiles"]),
            ),
            game=_game_from_json(stored),
            work=int(stored["work"]),
            seed=int(stored["seed"]),
            elapsed_s=float(stored["elapsed_s"]),
            stopped=str(stored.get("stopped", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise RecordError(f"{path} is damaged: {type(error).__name__} {error}", START_ANEW) from error
