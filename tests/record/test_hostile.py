"""A run folder from somebody else: nothing in it fills the memory, or leads a command to write elsewhere."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import RecordError
from lowmem_layers.model.memory import peak_bytes
from lowmem_layers.report import write_report
from tests.dictionary import Bench

SPEC = StudySpec(tasks=("one",), max_removed=1)
MIB = 1 << 20


@pytest.fixture
def run(tmp_path):
    return run_study(SPEC, tmp_path / "r", prepare=Bench().prepare)


def stored_in(run, **changes):
    """Read run.json, changed, without the checksum; its first entry of data is changed by `items`."""
    stored = json.loads((run.folder / "run.json").read_text())
    del stored["checksum"]
    if "items" in changes:
        stored["data"][0]["items"] = changes.pop("items")
    return stored | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"items": 10**9, "tiles": ["0-999999998"]}, "more than 1,000,000"),
        ({"items": 10**6, "tiles": ["0-999999 " * 1000]}, "more than the 1000000 items"),
        ({"items": 10**6, "tiles": ["0-999999"] * 1000}, "more than the 1000000 items"),
    ],
)
def test_a_manifest_that_claims_much(run, changes, said):
    (run.folder / "run.json").write_text(json.dumps(stored_in(run, **changes)))
    before = peak_bytes()
    with pytest.raises(RecordError, match=said):
        open_run(run.folder)
    assert peak_bytes() - before < 200 * MIB


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("items.parquet", "rows"),
        ("items.parquet", "bytes"),
        ("items.parquet", "repeated"),
        ("scores/tile-00000.parquet", "rows"),
        ("scores/tile-00000.parquet", "repeated"),
    ],
)
def test_parquet_that_unpacks_to_much_more(run, name, kind):
    """Files of some kilobytes: millions of equal rows, megabytes of one sign, a long text in every row."""
    rows = {"rows": 3_000_000, "bytes": 2, "repeated": 20}[kind]
    text = {"rows": "x", "bytes": "x" * (70 * MIB), "repeated": "x" * (10 * MIB)}[kind]
    task = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text]))
    columns = {"task": task, "chars" if name == "items.parquet" else "loglikelihood": pa.nulls(rows, pa.float64())}
    pq.write_table(pa.table(columns), run.folder / name, compression="zstd")
    assert (run.folder / name).stat().st_size < MIB
    del task, columns
    before = peak_bytes()
    with pytest.raises(RecordError, match="is damaged"):
        open_run(run.folder).scores()
    assert peak_bytes() - before < 100 * MIB


@pytest.mark.skipif(os.name == "nt", reason="links need a right that users of Windows seldom have")
@pytest.mark.parametrize("link", ["report", "report/figures", "report/tables", "report/index.html"])
def test_a_report_is_not_written_through_links(run, tmp_path, link):
    victim = tmp_path / "victim"
    victim.mkdir()
    (run.folder / link).parent.mkdir(exist_ok=True)
    (run.folder / link).symlink_to(victim)
    with pytest.raises(RecordError, match="is a link"):
        write_report(open_run(run.folder), formats=("svg",))
    assert not list(victim.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="links need a right that users of Windows seldom have")
@pytest.mark.parametrize("link", [".lock", "run.json.partial", "items.parquet.partial", "scores"])
def test_a_run_is_not_resumed_through_links(run, tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = run.folder / link
    if path.is_dir():
        path.rename(tmp_path / "scores")
        victim = tmp_path / "scores"
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    (run.folder / "items.parquet").unlink()
    if link.endswith(".partial"):
        run_study(SPEC, run.folder, prepare=Bench().prepare)
        assert not path.exists()
    else:
        with pytest.raises(RecordError, match="link"):
            run_study(SPEC, run.folder, prepare=Bench().prepare)
    assert victim.is_dir() or victim.read_text() == "mine"
