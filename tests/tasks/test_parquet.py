"""Parquet files of items that somebody else wrote: rows as they were written, in bounded memory."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lowmem_layers.errors import TaskError
from lowmem_layers.model.memory import peak_bytes
from lowmem_layers.tasks import parquet
from lowmem_layers.tasks.parquet import read_rows
from lowmem_layers.tasks.sources import read_file

MIB = 1 << 20
ROWS = [
    {
        "question": f"question {n % 3}" if n % 5 else None,
        "choices": {"text": [f"one {n}", "two"][: n % 3], "label": ["A", "B"]},
        "turns": [{"role": "user", "n": n}] * (n % 3),
        "answer": n % 2,
        "blob": b"\0\xff" * n,
    }
    for n in range(40)
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"row_group_size": 7, "data_page_version": "2.0"},
        {
            "dictionary_pagesize_limit": 20,
            "data_page_size": 10,
            "write_batch_size": 2,
        },  # from a dictionary to plain text
    ],
)
def test_rows_are_what_was_written(tmp_path, options):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", **options)
    assert list(read_rows(tmp_path / "a.parquet")) == ROWS


@pytest.mark.parametrize("rows", [0, 2])
def test_a_file_or_a_row_group_without_rows_has_none(tmp_path, rows):
    table = pa.Table.from_pylist(ROWS)
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema) as writer:
        writer.write_table(table[:0])
        writer.write_table(table[:rows])
    assert list(read_rows(tmp_path / "a.parquet")) == ROWS[:rows]


def repeated(text, n):
    """Name one text n times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, dtype=np.int32)), pa.array([text]))


def nested(inside):
    """Put everything into the list of one row."""
    return pa.ListArray.from_arrays(pa.array([0, len(inside)], pa.int32()), inside)


@pytest.mark.parametrize(
    ("column", "options", "said"),
    [
        (lambda: pa.array(["x" * (20 * MIB)]), {"use_dictionary": False}, "pages take 20,"),
        (lambda: nested(pa.array(np.zeros(3_000_000, np.int8))), {}, "pages take 48,"),
        (lambda: nested(repeated("x" * MIB, 100_000)), {}, "one of its rows takes 104,"),
    ],
    ids=["page", "list", "list of one text"],
)
def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, column, options, said):
    """16 MiB are allowed here, instead of 256."""
    monkeypatch.setattr(parquet, "MOST_BYTES", 16 * MIB)
    pq.write_table(pa.table({"q": column()}), tmp_path / "a.parquet", compression="zstd", **options)
    assert (tmp_path / "a.parquet").stat().st_size < MIB
    before = peak_bytes()
    with pytest.raises(TaskError, match=f"a.parquet: not a readable parquet file .*{said}"):
        list(read_file(tmp_path / "a.parquet"))
    assert peak_bytes() - before < 24 * MIB


def test_a_long_text_in_every_row_is_read_row_by_row(tmp_path):
    """100,000 rows of 4 MiB, 400 GB in all, of which the first two are asked for."""
    pq.write_table(pa.table({"q": repeated("x" * (4 * MIB), 100_000)}), tmp_path / "a.parquet", compression="zstd")
    before = peak_bytes()
    rows = read_rows(tmp_path / "a.parquet")
    assert [len(next(rows)["q"]) for _ in range(2)] == [4 * MIB] * 2
    assert peak_bytes() - before < 400 * MIB


def test_broken_files_end_in_one_error(tmp_path):
    """Flipped bits, cut and doubled pieces; among them codecs that there are not, which would end the process."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression="zstd")
    sound, rng, said = (tmp_path / "a.parquet").read_bytes(), random.Random(0), []
    for _ in range(250):
        data = bytearray(sound)
        place = rng.randrange(len(data))
        if rng.random() < 0.8:
            data[place] ^= 1 << rng.randrange(8)
        else:
            data[place : place + rng.randrange(9)] = data[: rng.randrange(9)]
        (tmp_path / "a.parquet").write_bytes(data)
        try:
            list(read_file(tmp_path / "a.parquet"))
        except TaskError as error:
            said.append(error.message)
    assert len(said) > 50
    assert all("not a readable parquet file" in each for each in said)
