"""Homes, staging and the packed file: the bytes that went in come out, in whatever order they are asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.formats import DENSE, FOUR_BIT, Packed
from lowmem_layers.model.homes import packed_file
from lowmem_layers.model.homes.home import DiskHome, Home, MemoryHome, largest_layer_bytes
from lowmem_layers.model.homes.layout import lay_out, layout_from_json, layout_to_json
from lowmem_layers.model.homes.packed_file import DiskFullError, PackedFile, PackedFileWriter, write_packed_file
from lowmem_layers.model.homes.staging import HostLane, Lane, StagedFeed
from lowmem_layers.model.homes.store import GroupKey

CPU = torch.device("cpu")


def groups() -> dict[GroupKey, dict[str, Packed]]:
    random = torch.Generator().manual_seed(0)
    made: dict[GroupKey, dict[str, Packed]] = {}
    for layer in range(4):
        attn = torch.randn(16, 64, generator=random).bfloat16()
        ffn = torch.randn(24 + 8 * layer, 64, generator=random).bfloat16()
        made[layer, "attn"] = {f"{layer}.q": FOUR_BIT.pack(attn), f"{layer}.odd": DENSE.pack(attn[:3, :5])}
        made[layer, "ffn"] = {f"{layer}.up": DENSE.pack(ffn)}
    return made


def memory_home() -> MemoryHome:
    home = MemoryHome(CPU)
    for key, packed in groups().items():
        home.add(key, packed)
    return home


def disk_home(path: Path) -> DiskHome:
    with write_packed_file(path, {"model": "tiny"}) as writer:
        for key, packed in groups().items():
            writer.add(key, packed)
    return DiskHome(PackedFile(path))


def assert_same(found: Packed, expected: Packed) -> None:
    assert (found.format, found.shape, dict(found.settings)) == (
        expected.format,
        expected.shape,
        dict(expected.settings),
    )
    assert found.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        assert torch.equal(found.parts[name], part)


REQUESTS: list[list[GroupKey]] = [
    [(0, "attn"), (0, "ffn")], [(1, "ffn")], [], [(3, "attn"), (3, "ffn")], [(2, "attn")], [(0, "attn")],
]  # fmt: skip


class LateLane:
    """A lane whose device buffers are filled only when they are received, and spoiled when they are released."""

    def __init__(self, n_bytes: int) -> None:
        self._host = [torch.empty(n_bytes, dtype=torch.uint8) for _ in range(2)]
        self._there = [torch.empty(n_bytes, dtype=torch.uint8) for _ in range(2)]
        self._in_use = [False, False]

    def host(self, turn: int) -> torch.Tensor:
        return self._host[turn]

    def send(self, turn: int, n_bytes: int) -> None:
        assert not self._in_use[turn], "a buffer was refilled while it was read"
        self._there[turn][:n_bytes] = self._host[turn][:n_bytes]
        self._host[turn].fill_(255)

    def receive(self, turn: int) -> torch.Tensor:
        self._in_use[turn] = True
        return self._there[turn]

    def release(self, turn: int) -> None:
        self._there[turn].fill_(255)
        self._in_use[turn] = False


@pytest.mark.parametrize("lane_class", [HostLane, LateLane])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_staging_delivers_every_request(tmp_path: Path, where: str, lane_class: Any) -> None:
    home: Home = memory_home() if where == "memory" else disk_home(tmp_path / "weights.packed")
    lane: Lane = lane_class(largest_layer_bytes(home.layouts))
    expected = groups()
    feed = StagedFeed(home, lane)
    for _ in range(2):
        served = 0
        for request, views in zip(REQUESTS, feed.stream(REQUESTS), strict=True):
            wanted = {key: packed for group in request for key, packed in expected[group].items()}
            assert views.keys() == wanted.keys()
            for key, packed in wanted.items():
                assert_same(views[key], packed)
            served += 1
        assert served == len(REQUESTS)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    home = disk_home(tmp_path / "weights.packed")
    read: list[GroupKey] = []
    plain = home.read_into

    def counted(key: GroupKey, buffer: torch.Tensor) -> None:
        read.append(key)
        plain(key, buffer)

    home.read_into = counted  # type: ignore[method-assign]
    feed = StagedFeed(home, HostLane(largest_layer_bytes(home.layouts)))
    for _ in feed.stream([[(1, "ffn")], [(2, "attn")]]):
        pass
    assert read == [(1, "ffn"), (2, "attn")]


def test_an_error_of_the_reader_reaches_the_visitor(tmp_path: Path) -> None:
    home = disk_home(tmp_path / "weights.packed")
    content = bytearray((tmp_path / "weights.packed").read_bytes())
    content[4096 * 3 + 7] ^= 1  # inside a later group
    (tmp_path / "weights.packed").write_bytes(content)
    feed = StagedFeed(DiskHome(PackedFile(home._file.path)), HostLane(largest_layer_bytes(home.layouts)))
    every: Sequence[Sequence[GroupKey]] = [[key] for key in groups()]
    with pytest.raises(CheckpointError, match="have changed since they were written"):
        list(feed.stream(every))


def test_a_layout_survives_json() -> None:
    layout = lay_out(groups()[2, "attn"])
    assert layout_from_json(layout_to_json(layout)) == layout


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.packed"

    def write_then_fail() -> None:
        with write_packed_file(path, {}) as writer:
            writer.add((0, "attn"), groups()[0, "attn"])
            assert list(tmp_path.iterdir())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_then_fail()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PackedFileWriter, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedFileWriter, "_write", full)
    with pytest.raises(DiskFullError, match="the disk is full") as caught:
        disk_home(tmp_path / "weights.packed")
    assert "LOWMEM_LAYERS_CACHE" in caught.value.hint
    assert not list(tmp_path.iterdir())


class ElsewhereOs:
    """The module `os` as other systems have it: Windows has neither of these functions, macOS not always."""

    def __getattr__(self, name: str) -> Any:
        if name in ("preadv", "statvfs"):
            raise AttributeError(name)
        return getattr(os, name)


def test_systems_without_preadv_and_statvfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "os", ElsewhereOs())
    home = disk_home(tmp_path / "weights.packed")
    expected = groups()

    def read(key: GroupKey) -> bool:
        buffer = torch.empty(home.layouts[key].n_bytes, dtype=torch.uint8)
        home.read_into(key, buffer)
        views = home.layouts[key].views(buffer)
        return all(torch.equal(views[k].parts[n], p) for k, e in expected[key].items() for n, p in e.parts.items())

    with ThreadPoolExecutor(4) as threads:  # which share the file's one position
        assert all(threads.map(read, list(expected) * 50))
    (tmp_path / "weights.packed").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"it ends inside attn\.0"):
        home.read_into((0, "attn"), torch.empty(home.layouts[0, "attn"].n_bytes, dtype=torch.uint8))

    def full(self: PackedFileWriter, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PackedFileWriter, "_write", full)
    with pytest.raises(DiskFullError, match=r"the disk is full: .* \(\d.* free\)"):
        disk_home(tmp_path / "other.packed")


@pytest.mark.parametrize(("writer", "stays"), [(str(os.getppid()), True), ("999999999", False), ("somebody", False)])
def test_what_a_running_process_writes_is_left_alone(tmp_path: Path, writer: str, stays: bool) -> None:
    partial = tmp_path / f"weights.packed.{writer}.partial"
    partial.write_bytes(b"half")
    os.utime(partial, (0, 0))
    disk_home(tmp_path / "weights.packed")
    assert partial.exists() == stays


@pytest.mark.parametrize("keep", [0, 10, 5000, -1, -20])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.packed"
    disk_home(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cannot be used"):
        PackedFile(path)


def test_another_versions_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.packed"
    disk_home(path)
    monkeypatch.setattr(packed_file, "FORMAT_VERSION", packed_file.FORMAT_VERSION + 1)
    with pytest.raises(CheckpointError, match=r"it is of version (\d+), this is version \d+"):
        PackedFile(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_lane_delivers_every_request(tmp_path: Path) -> None:
    from lowmem_layers.model.homes.staging import CudaLane

    home = disk_home(tmp_path / "weights.packed")
    feed = StagedFeed(home, CudaLane(largest_layer_bytes(home.layouts), torch.device("cuda")))
    expected = groups()
    for request, views in zip(REQUESTS, feed.stream(REQUESTS), strict=True):
        for key, packed in ((k, p) for group in request for k, p in expected[group].items()):
            parts = {name: part.cpu() for name, part in views[key].parts.items()}
            assert_same(views[key].with_parts(parts), packed)
