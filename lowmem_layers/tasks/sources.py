"""Where records come from: a data folder, a local copy of a hub data set, or the hub itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.records import Record, open_data, read_jsonl, shown

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub: its id, configuration and revision."""

    id: str
    config: str | None = None
    revision: str | None = None

    @property
    def call(self) -> str:
        """Write the call that fetches it, for a hint."""
        config = f", {self.config!r}" if self.config else ""
        return f"load_dataset({self.id!r}{config})"


def read_file(path: Path) -> Iterator[Record]:
    """Read a data file: parquet by its suffix, JSON lines or a JSON list of objects by how it begins.

    Raises:
        TaskError: it is missing, damaged, or of another kind.
    """
    if not path.is_file():
        kind = "a folder, not a data file:" if path.is_dir() else "no data file"
        raise TaskError(f"{kind} {path}", "one JSON object a line; check the folder and the name")
    if path.suffix in (".jsonl", ".ndjson", ".json"):
        return _read_json(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise TaskError(f"{path.name}: unknown kind of data file", f"use one of {', '.join(_SUFFIXES)}")


def _read_json(path: Path) -> Iterator[Record]:
    """Read a JSON list of objects, or JSON lines, whatever the file's name says."""
    with open_data(path) as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first != b"[":
        yield from read_jsonl(path)
        return
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path.name}: malformed JSON ({error})", "use one JSON object a line (.jsonl)") from error
    for index, value in enumerate(values, start=1):
        where = f"{path.name}, entry {index}"
        if not isinstance(value, dict):
            raise TaskError(f"{where}: expected a JSON object, got {shown(value)}", "a list of JSON objects")
        yield Record(value, where)


def _read_parquet(path: Path) -> Iterator[Record]:
    """Stream a parquet file: nothing is copied into a cache."""
    import datasets
    from datasets.exceptions import DatasetsError

    open_data(path).close()
    try:
        table = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True)
        yield from _numbered(table, path.name)
    except (OSError, ValueError, DatasetsError) as error:
        raise TaskError(f"{path.name}: not a readable parquet file ({_reason(error)})", "fetch it again") from error


def _numbered(rows: Iterable[Any], name: str) -> Iterator[Record]:
    for index, row in enumerate(rows, start=1):
        yield Record(row, f"{name}, row {index}")


def hub_records(source: HubSource, split: str) -> Iterator[Record]:
    """Read a split from the hub, or from the cache of an earlier fetch (by `datasets`, or of the repository's files).

    Raises:
        TaskError: it cannot be fetched and was not fetched before, or has no such configuration or split.
    """
    import datasets

    try:
        rows = datasets.load_dataset(source.id, source.config, split=split, revision=source.revision)
    except Exception as error:  # the hub's client lets errors of its own network library through
        copy = _cached_repository(source)
        if copy is not None:
            return folder_records(copy, split, source.config)[0]
        raise TaskError(
            f"cannot get {source.id} ({source.config or 'default'}, {split}): {_reason(error)}",
            f'fetch it once where there is a network: python -c "from datasets import load_dataset; {source.call}", '
            "or give local files with --data-dir FOLDER (HF_HUB_OFFLINE=1 uses what was fetched before without asking)",
        ) from error
    return _numbered(rows, f"{source.id} {split}")


def _cached_repository(source: HubSource) -> Path | None:
    """Find the files of a data set's repository in the hub's cache, as `hf download` leaves them."""
    from huggingface_hub import snapshot_download

    try:
        place = snapshot_download(source.id, repo_type="dataset", revision=source.revision, local_files_only=True)
    except (OSError, ValueError):  # LocalEntryNotFoundError, HFValidationError
        return None
    return Path(place) if any(file.suffix in _SUFFIXES for file in Path(place).rglob("*")) else None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


def folder_records(folder: Path, split: str, config: str | None = None) -> tuple[Iterator[Record], str]:
    """Read a split from a local copy: `save_to_disk`, or a folder of parquet, JSON or JSON-lines files.

    Files belong to a split when their name is the split's or begins with it (`test-00000-of-00001.parquet`; `dev` and
    the like for validation); a subfolder named like the configuration is looked into first, and without one the only
    subfolder that has the split.

    Raises:
        TaskError: nothing there holds the split, or several subfolders do.
    """
    if config is not None and (folder / config).is_dir():
        return folder_records(folder / config, split)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_records(folder, split), folder.name
    for place in (folder, folder / "data", folder / split):
        files = _files_of(place, split)
        if files:
            return _chain(files), f"{folder.name}/{files[0].name}"
    inner = [place for place in sorted(folder.iterdir()) if place.is_dir() and _files_of(place, split)]
    if len(inner) == 1:
        return folder_records(inner[0], split)
    if inner:
        names = ", ".join(place.name for place in inner[:8])
        raise TaskError(f"{folder} has several folders with the split {split!r}: {names}", "give one of them")
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise TaskError(f"{folder} has no files for the split {split!r}", f"it holds: {there}")


# Other names of a split's files, as `datasets` reads them too.
_OTHER_NAMES = {"validation": ("valid", "val", "dev")}


def _files_of(place: Path, split: str) -> list[Path]:
    """List a split's data files in one folder, under the first of its names that has any."""
    there = sorted(file for file in place.glob("*") if file.suffix in _SUFFIXES and file.is_file())
    for name in (split, *_OTHER_NAMES.get(split, ())):
        files = [file for file in there if _is_of(file, name, place)]
        if files:
            return files
    return []


def _is_of(file: Path, split: str, place: Path) -> bool:
    stem = file.name.removesuffix(file.suffix)
    return place.name == split or stem == split or stem.startswith((f"{split}-", f"{split}.", f"{split}_"))


def _chain(files: list[Path]) -> Iterator[Record]:
    for file in files:
        yield from read_file(file)


def _saved_records(folder: Path, split: str) -> Iterator[Record]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        saved = datasets.load_from_disk(str(folder))
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise TaskError(f"{folder} is not a readable saved data set ({_reason(error)})", "save it again") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise TaskError(f"{folder} has no split {split!r}", f"it has: {', '.join(map(str, saved))}")
        saved = saved[split]
    yield from _numbered(saved, folder.name)


def local_records(folder: Path, name: str, source: HubSource, split: str) -> tuple[Iterator[Record], str]:
    """Find a task's records in the data folder: `TASK.jsonl`, a folder `TASK`, or a copy of the hub's data set.

    Raises:
        TaskError: there is no such folder, or nothing of the task in it.
    """
    if not folder.is_dir():
        raise TaskError(f"--data-dir {folder} is not a folder", "give the folder that holds TASK.jsonl")
    for suffix in _SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return read_file(path), path.name
    repository = source.id.rpartition("/")[2]
    for place in (folder / name, folder / repository):
        if place.is_dir():
            return folder_records(place, split, source.config)
    if folder.name == repository or (source.config and (folder / source.config).is_dir()):
        return folder_records(folder, split, source.config)
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:12]) or "nothing"
    raise TaskError(f"no data file {folder / name}.jsonl", f"the folder holds: {there}")
