"""Read a run without this package, as benchmarks/record.md describes it: Python, pyarrow and nothing else.

    python benchmarks/read_record.py RUN

Every checksum is compared. What is printed, as JSON: how many items are finished, and what the removal of each sublayer
alone costs (nats of the gold answer's log-likelihood, on average over the finished items of each task).
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def sha256(data: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(data).hexdigest()


def read_run(folder: Path) -> dict[str, Any]:
    """Read run.json."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if run["schema"] != 1:
        sys.exit(f"schema {run['schema']} is not the one described")
    written = run.pop("checksum", None)  # records of 0.2 and before have none
    if written not in (None, sha256(json.dumps(run, sort_keys=True).encode())):
        sys.exit("run.json is not as it was written")
    return run


def read_table(path: Path, content: Callable[[pa.Table], bytes]) -> pa.Table:
    """Read a parquet file and compare the checksum in its metadata with that of its content."""
    table = pq.read_table(path, page_checksum_verification=True)
    written = (table.schema.metadata or {}).get(b"sha256")
    if written not in (None, sha256(content(table)).encode()):
        sys.exit(f"{path} is not as it was written")
    return table


def ranges(spelled: str) -> Iterator[int]:
    """List the numbers of `0-3 7`."""
    for part in spelled.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def main(folder: Path) -> None:
    """Read everything, and average."""
    run = read_run(folder)
    players = run["players"].split(" ")
    removed = ["+".join(players[int(place)] for place in line.split()) for line in run["removed"]]
    # 1) the items: one row for each choice
    table = read_table(folder / "items.parquet", lambda table: json.dumps(table.to_pydict()).encode())
    items = list(dict.fromkeys(zip(table["task"].to_pylist(), table["item"].to_pylist(), strict=True)))
    # 2) the tiles that are there, each with the items that run.json says
    gold: dict[tuple[str, str], list[float]] = {}  # (task, removed) → log-likelihoods of the gold answers
    n_done = 0
    for number, spelled in enumerate(run["tiles"]):
        path = folder / "scores" / f"tile-{number:05d}.parquet"
        if not path.exists():
            continue
        table = read_table(path, lambda table: table["loglikelihood"].to_numpy().astype("<f8").tobytes())
        rows = table.to_pylist()
        held = list(dict.fromkeys((row["task"], row["item"]) for row in rows))
        if held != [items[index] for index in ranges(spelled)]:
            sys.exit(f"{path} holds other items than run.json says")
        n_done += len(held)
        for row in rows:
            if row["gold"]:
                gold.setdefault((row["task"], row["removed"]), []).append(row["loglikelihood"])
    # 3) what the removal of one sublayer costs
    mean = {key: sum(values) / len(values) for key, values in gold.items()}
    alone = [name for name in removed if name and "+" not in name]
    tasks = [entry["task"] for entry in run["data"]]
    drops = {task: {name: mean[task, ""] - mean[task, name] for name in alone} for task in tasks if (task, "") in mean}
    print(json.dumps({"items": n_done, "of": len(items), "status": run["status"], "ablation_drops": drops}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    options = parser.parse_args()
    if not (options.run / "run.json").is_file():
        parser.error(f"{options.run} is not a run folder: it has no run.json")
    main(options.run)
