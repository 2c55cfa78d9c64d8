"""A run folder from somebody else: nothing in it fills the memory, or leads a command to write elsewhere."""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowmem_layers import StudySpec, open_run, run_study
from lowmem_layers.errors import DamagedError, RecordError
from lowmem_layers.model.memory import peak_bytes
from lowmem_layers.record.scores import read_table
from lowmem_layers.report import write_report
from lowmem_layers.tasks.pages import Thrift
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


def varint(number, length=0):
    """Spell a number as Thrift does, padded to a length."""
    number, found = number << 1, bytearray()
    while number >= 128 or len(found) < length - 1:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


@pytest.mark.parametrize("name", ["items.parquet", "scores/tile-00000.parquet"])
def test_parquet_whose_footer_lies(run, name):
    """The footer says that a page of 72 MiB has a hundred bytes; the page's own header has to say what it takes."""
    path = run.folder / name
    text = "x" * (72 * MIB) + np.random.default_rng(0).bytes(4000).hex()  # more than the 4 KiB that are not looked into
    pq.write_table(pa.table({"task": [text], "choice": [1]}), path, compression="zstd", use_dictionary=False)
    del text
    content, about = bytearray(path.read_bytes()), pq.read_metadata(path)
    assert len(content) < MIB
    for true in (about.row_group(0).column(0).total_uncompressed_size, about.row_group(0).total_byte_size):
        footer = content.index(varint(true), len(content) - 2000)
        content[footer : footer + len(varint(true))] = varint(100, len(varint(true)))
    path.write_bytes(content)
    assert pq.read_metadata(path).row_group(0).total_byte_size == 100
    before = peak_bytes()
    with pytest.raises(RecordError, match=r"is damaged: it holds 1 rows of 75,\d\d\d,\d\d\d bytes"):
        open_run(run.folder).scores()
    assert peak_bytes() - before < 16 * MIB


@pytest.mark.parametrize("text", ["x" * MIB, b"x" * MIB])
def test_a_column_that_no_record_has_is_not_read(run, text):
    """A text of 1 MiB in 500,000 rows, named once in the file: 500 GB when it is spelled out."""
    rows = 500_000
    task = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text]))
    pq.write_table(pa.table({"chars": task}), run.folder / "items.parquet", compression="zstd")
    with pytest.raises(RecordError, match="is damaged: column 'chars' holds BYTE_ARRAY"):
        open_run(run.folder).scores()


@pytest.mark.parametrize("seed", range(40))
def test_headers_of_pages_that_make_no_sense_end(seed):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 400, dtype=np.uint8)
    data[: seed % 5] = 0x19  # a list
    data[1:9] = 0xFF if seed % 2 else data[1:9]
    with contextlib.suppress(ValueError):
        Thrift(memoryview(data.tobytes())).struct()


def test_headers_of_pages_without_end(monkeypatch):
    """A list of 2³⁰ empty lists: each takes one byte."""
    monkeypatch.setattr("lowmem_layers.tasks.pages._MOST_VALUES", 5_000)
    header = b"\x19\xf9" + b"\x80\x80\x80\x80\x04" + bytes(10_000)
    with pytest.raises(ValueError, match="more than 5,000 values"):
        Thrift(memoryview(header)).struct()


def test_headers_of_pages_that_nest_without_end():
    with pytest.raises(ValueError, match="nested too deeply"):
        Thrift(memoryview(b"\x19" * 5_000)).struct()


def test_damage_of_a_footer_never_ends_the_process(run):
    """Asked for a column chunk of which the statistics do not fit its schema, pyarrow does: each bit of 60 bytes."""
    path = run.folder / "scores" / "tile-00000.parquet"
    sound = path.read_bytes()
    start = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    for place in range(start + 5, start + 65):
        for bit in range(8):
            content = bytearray(sound)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with contextlib.suppress(DamagedError):
                read_table(path)


@pytest.mark.parametrize(
    ("codec", "n_values", "said"),
    [
        (28, None, "codec value: 14"),  # asked for one that it does not know, pyarrow ends the whole process
        (12, 61, "has 61 values in [0-9]+ rows"),  # memory is taken for each
    ],
)
@pytest.mark.parametrize("name", ["items.parquet", "scores/tile-00000.parquet"])
def test_a_footer_that_names_what_there_is_not(run, name, codec, n_values, said):
    """Codec and number of values follow one another in the footer's ColumnMetaData (here all packed with zstd, 6)."""
    path = run.folder / name
    content, n_rows = bytearray(path.read_bytes()), pq.read_metadata(path).num_rows
    true = b"\x15\x0c\x16" + varint(n_rows)
    false = bytes([0x15, codec, 0x16]) + varint(n_values or n_rows)
    assert len(true) == len(false)
    assert true in content
    path.write_bytes(content.replace(true, false))
    with pytest.raises(RecordError, match=f"is damaged: .*{said}"):
        open_run(run.folder).scores()


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
