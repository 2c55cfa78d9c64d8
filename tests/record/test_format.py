"""A script that never imports the package reads a record as benchmarks/record.md describes it, and agrees with it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lowmem_layers import StudySpec, run_study
from lowmem_layers.record.items import ITEMS_SCHEMA
from lowmem_layers.record.scores import SCORES_SCHEMA
from tests.dictionary import Bench

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "read_record.py"
DOCUMENT = (ROOT / "benchmarks" / "record.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    spec = StudySpec(tasks=("one", "three"), max_removed=2)
    return run_study(spec, tmp_path_factory.mktemp("format") / "r", prepare=Bench().prepare)


def read_elsewhere(folder):
    """Run the script of the documentation, with this package out of its reach."""
    program = "import sys, runpy; sys.modules['lowmem_layers'] = None; runpy.run_path({!r}, run_name='__main__')"
    program = program.format(str(SCRIPT))
    return subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)


def test_a_script_without_the_package_reads_the_same_numbers(run, tmp_path):
    found = json.loads(read_elsewhere(run.folder).stdout)
    assert (found["items"], found["of"], found["status"]) == (run.n_items_done, run.manifest.n_items, "done")
    rows = run.importance("loglikelihood").to_pylist()
    for row in rows:
        if row["task"] != "all":
            drop = found["ablation_drops"][row["task"]][row["sublayer"]]
            assert drop == pytest.approx(row["ablation_drop"], abs=1e-12)
    # and it notices a changed number
    path = run.folder / "scores" / "tile-00000.parquet"
    table, whole = pq.read_table(path), path.read_bytes()
    changed = table["loglikelihood"].to_numpy().copy()
    changed[3] += 1e-9
    place = table.schema.get_field_index("loglikelihood")
    pq.write_table(table.set_column(place, table.schema.field(place), [changed]), path)
    try:
        with pytest.raises(SystemExit, match=r"tile-00000\.parquet is not as it was written"):
            runpy.run_path(str(SCRIPT))["main"](run.folder)
    finally:
        path.write_bytes(whole)


def test_every_field_and_column_is_described(run):
    stored = json.loads((run.folder / "run.json").read_text())
    said = set(re.findall(r"^\| `([a-z_0-9.]+)`", DOCUMENT, re.MULTILINE))
    assert said >= set(stored) | {"groups", "orders", "cuts"}
    assert said >= {f"items.{name}" for name in ITEMS_SCHEMA.names} | {f"scores.{name}" for name in SCORES_SCHEMA.names}
