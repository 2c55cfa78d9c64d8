"""The run folder before, between and after tiles: what is in it, and what of that is finished."""

from __future__ import annotations

import os
from pathlib import Path

from lowmem_layers.errors import RecordError
from lowmem_layers.record.files import TEMPORARY, discard
from lowmem_layers.record.identity import same_identity
from lowmem_layers.record.items import ITEMS_FILE
from lowmem_layers.record.lock import LOCK
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.run_json import RUN_FILE, read_manifest
from lowmem_layers.record.scores import SCORES_FOLDER, tile_name
from lowmem_layers.record.spec import Specification

REPORT_FOLDER = "report"
_OURS = frozenset({LOCK, RUN_FILE, ITEMS_FILE, SCORES_FOLDER, REPORT_FOLDER})


def known_run(folder: Path, specification: Specification) -> Manifest | None:
    """Read the run that is in the folder, if there is one; refuse another run's folder before anything is loaded.

    Raises:
        RecordError: the folder holds another run or other files, or cannot be written.
    """
    try:
        if (folder / RUN_FILE).exists():
            manifest = read_manifest(folder)
            same_identity(folder, manifest, specification.identity())
            return manifest
        if folder.exists() and not folder.is_dir():
            raise RecordError(f"{folder} is a file", "--out takes a folder")
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        foreign = [name for name in names if name.removesuffix(TEMPORARY) not in _OURS]
        if foreign:
            raise RecordError(
                f"{folder} is not a run folder: it holds {foreign[0]} and no {RUN_FILE}",
                "choose a new or an empty folder with --out",
            )
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise RecordError(f"cannot write to {above}", "choose another folder with --out")
    except OSError as error:  # a name that is too long, a loop of links, a closed folder
        raise RecordError(f"cannot use {folder}: {error.strerror}", "choose another folder with --out") from error
    return None


def tidy(folder: Path) -> None:
    """Remove files that a killed process left half-written."""
    for place in (folder, folder / SCORES_FOLDER):
        for name in os.listdir(place):
            if name.endswith(TEMPORARY):
                discard(place / name)


def finished_tiles(folder: Path, n_tiles: int) -> list[int]:
    """List the tiles that are on disk.

    Raises:
        RecordError: there are scores that are no tile of this run.
    """
    scores = folder / SCORES_FOLDER
    if scores.is_symlink():
        raise RecordError(f"{scores} is a link, and what is written there would leave the run", "move the whole run")
    # Names, not paths: there may be a hundred thousand. A glob would take a closed folder for an empty one.
    expected = {tile_name(tile): tile for tile in range(n_tiles)}
    found = sorted(name for name in os.listdir(scores) if name.endswith(".parquet")) if scores.exists() else []
    strange = [name for name in found if name not in expected]
    if strange:
        raise RecordError(
            f"{scores / strange[0]} is no tile of this run, which has {n_tiles}",
            "remove that file, or give another --out",
        )
    return sorted(expected[name] for name in found)
