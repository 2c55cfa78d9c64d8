"""Where records come from: a data folder, a local copy of a hub data set, or the hub itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lowmem_layers.errors import TaskError
from lowmem_layers.tasks.records import Record, open_data, read_jsonl, reason, shown

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_OTHER_NAMES = {"validation": ("valid", "val", "dev")}  # of a split's files; `datasets` reads them too


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub: its id, configuration and revision."""

    id: str
    config: str | None = None
    revision: str | None = None

    @property
    def repository(self) -> str:
        """Name the repository without its owner; a local copy's folder usually has this name."""
        return self.id.rpartition("/")[2]


def read_split(place: Path | HubSource, split: str) -> Iterator[Record]:
    """Read a split of a folder or of a data set of the hub; a file holds one split, and all of it is read.

    Raises:
        TaskError: there is nothing to read, or it is damaged.
    """
    if isinstance(place, HubSource):
        return hub_records(place, split)
    return folder_records(place, split)[0] if place.is_dir() else read_file(place)


def read_file(path: Path) -> Iterator[Record]:
    """Read a data file, and the labels beside it where it has none: `valid.jsonl` and `valid-labels.lst`.

    Raises:
        TaskError: a file is missing, damaged, or of another kind, or the labels do not fit the records.
    """
    labels = path.with_name(f"{path.stem}-labels.lst")
    return with_labels(list(_records_of(path)), labels) if labels.is_file() else _records_of(path)


def with_labels(records: Sequence[Record], path: Path) -> Iterator[Record]:
    """Put the n-th line of a file of labels into the n-th record, as its field `label`.

    PIQA's authors (and those of other data sets of that time) publish their items and labels in two files.

    Raises:
        TaskError: there are more or fewer labels than records, or a record has a label of its own that is another one.
    """
    with open_data(path) as file:
        lines = [line.strip() for line in file.read().decode("utf-8-sig", "backslashreplace").rstrip().splitlines()]
    if len(lines) != len(records):
        first = records[0].where.rpartition(", ")[0] if records else path.name
        raise TaskError(
            f"{path.name} has {len(lines)} labels for the {len(records)} items of {first}",
            "fetch both files again, from the same place",
        )
    for number, (record, line) in enumerate(zip(records, lines, strict=True), start=1):
        where = f"{path.name}, line {number}"
        own = record.fields.get("label")
        if own is not None and str(own) != line:
            record.fail("label", f"{shown(own)}, but {where} says {line}", f"remove {path.name}, or the field")
        yield Record({**record.fields, "label": line}, f"{record.where} ({where})")  # whoever reads it checks it


def _records_of(path: Path) -> Iterator[Record]:
    """Read a data file; its suffix tells parquet from JSON, and its first sign a JSON list from JSON lines.

    Raises:
        TaskError: it is missing, damaged, or of another kind.
    """
    if not path.is_file():
        kind = "a folder, not a data file:" if path.is_dir() else "no data file"
        raise TaskError(f"{kind} {path}", "check the folder and the name; the file has one JSON object a line")
    if path.suffix not in _SUFFIXES:
        raise TaskError(f"{path.name}: unknown kind of data file", f"use one of {', '.join(_SUFFIXES)}")
    # 1) parquet, a few rows at a time
    if path.suffix == ".parquet":
        from lowmem_layers.tasks.parquet import read_rows

        open_data(path).close()  # so that a missing permission is named as what it is
        try:
            yield from _numbered(read_rows(path), path.name)
        except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:  # pyarrow's are such
            raise TaskError(f"{path.name}: not a readable parquet file ({reason(error)})", "fetch it again") from error
        return
    # 2) JSON lines, also in a file that is called .json
    with open_data(path) as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first != b"[":
        yield from read_jsonl(path)
        return
    # 3) one JSON list of objects, also in a file that is called .jsonl
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{path.name}: malformed JSON ({error})", "write a JSON list of objects, or one JSON object on each line"
        ) from error
    for index, value in enumerate(values, start=1):
        where = f"{path.name}, entry {index}"
        if not isinstance(value, dict):
            raise TaskError(f"{where}: expected a JSON object, got {shown(value)}", "write a list of JSON objects")
        yield Record(value, where)


def _numbered(rows: Iterable[Any], name: str) -> Iterator[Record]:
    for index, row in enumerate(rows, start=1):
        yield Record(row, f"{name}, row {index}")


def hub_records(source: HubSource, split: str) -> Iterator[Record]:
    """Read a split from the hub, or from the hub's or `datasets`' cache of an earlier fetch.

    Raises:
        TaskError: it cannot be fetched and was not fetched before, or has no such configuration or split.
    """
    import datasets
    from huggingface_hub import snapshot_download

    try:
        rows = datasets.load_dataset(source.id, source.config, split=split, revision=source.revision)
    except Exception as error:  # the hub's client lets errors of its own network library through
        # `datasets` uses only what it prepared itself; `hf download` leaves the repository's files in the hub's cache
        try:
            copy = Path(
                snapshot_download(source.id, repo_type="dataset", revision=source.revision, local_files_only=True)
            )
        except (OSError, ValueError):  # LocalEntryNotFoundError, HFValidationError
            copy = None
        if copy is not None and any(file.suffix in _SUFFIXES for file in copy.rglob("*")):
            return folder_records(copy, split, source.config)[0]
        call = f"load_dataset({source.id!r}{f', {source.config!r}' if source.config else ''})"
        raise TaskError(
            f"cannot get {source.id} ({source.config or 'default'}, {split}): {reason(error)}",
            f'fetch it once where there is a network: python -c "from datasets import load_dataset; {call}", '
            "or give local files with --data-dir FOLDER (HF_HUB_OFFLINE=1 uses what was fetched before without asking)",
        ) from error
    return _numbered(rows, f"{source.id} {split}")


def folder_records(folder: Path, split: str, config: str | None = None) -> tuple[Iterator[Record], str]:
    """Read a split from a local copy: `save_to_disk`, or a folder of parquet, JSON or JSON-lines files.

    Returns the records and the name of what was found.

    A file belongs to a split if its name is the split's name or begins with it (`test-00000-of-00001.parquet`). The
    subfolder with the configuration's name is read if there is one, otherwise the only subfolder that has the split.

    Raises:
        TaskError: nothing in the folder holds the split, or several subfolders do.
    """
    if config is not None and (folder / config).is_dir():
        return folder_records(folder / config, split)
    # 1) a folder that `save_to_disk` wrote
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_records(folder, split), folder.name
    # 2) the split's own files, in one of the places where the hub's repositories have them
    for place in (folder, folder / "data", folder / split):
        files = _files_of(place, split)
        if files:
            return chain.from_iterable(map(read_file, files)), f"{folder.name}/{files[0].name}"
    # 3) the one configuration that is there
    inner = [place for place in sorted(folder.iterdir()) if place.is_dir() and _files_of(place, split)]
    if len(inner) == 1:
        return folder_records(inner[0], split)
    if inner:
        names = ", ".join(place.name for place in inner[:8])
        raise TaskError(
            f"{folder} has several folders with the split {split!r}: {names}", "give the path of one of them"
        )
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise TaskError(f"{folder} has no files for the split {split!r}", f"it holds: {there}")


def _files_of(place: Path, split: str) -> list[Path]:
    """List a split's data files in one folder, under the first of the split's names that has any."""
    there = sorted(file for file in place.glob("*") if file.suffix in _SUFFIXES and file.is_file())
    for name in (split, *_OTHER_NAMES.get(split, ())):
        begins = tuple(name + sign for sign in "-._")  # test-00000-of-00001.parquet, test.part1.jsonl, test_1.jsonl
        own = [file for file in there if file.stem == name or file.stem.startswith(begins)]
        files = there if place.name == name else own
        if files:
            return files
    return []


def _saved_records(folder: Path, split: str) -> Iterator[Record]:
    """Read what `save_to_disk` wrote: a data set, or a dictionary of data sets by split."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        saved = datasets.load_from_disk(str(folder))
    except PermissionError:  # not damaged: the command line names the file and the permission
        raise
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise TaskError(f"{folder} is not a readable saved data set ({reason(error)})", "save it again") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise TaskError(f"{folder} has no split {split!r}", f"it has: {', '.join(map(str, saved))}")
        saved = saved[split]
    yield from _numbered(saved, folder.name)


def local_records(folder: Path, name: str, source: HubSource, split: str) -> tuple[Iterator[Record], str]:
    """Find a task's records in the data folder: `TASK.jsonl`, a folder `TASK`, or a copy of the hub's data set.

    Returns the records and the name of what was found.

    Raises:
        TaskError: there is no such folder, it has no data of the task, or it is itself the task's own.
    """
    if not folder.is_dir():
        raise TaskError(f"--data-dir {folder} is not a folder", "give the folder that holds TASK.jsonl")
    for suffix in _SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return read_file(path), path.name
    for place in (folder / name, folder / source.repository):
        if place.is_dir():
            return folder_records(place, split, source.config)
    # the folder may itself be the copy
    if folder.name == source.repository or (source.config and (folder / source.config).is_dir()):
        return folder_records(folder, split, source.config)
    if own := _files_of(folder, "validation") or _files_of(folder, "test"):
        whole = folder.resolve()
        parent = f"give --data-dir {whole.parent}"
        raise TaskError(
            f"--data-dir {folder} holds {own[0].name} itself; what is meant is the folder above a folder {name}",
            parent if whole.name == name else f"name the folder {name}, and {parent}",
        )
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:12]) or "nothing"
    raise TaskError(f"no data file {folder / name}.jsonl", f"the folder holds: {there}")
