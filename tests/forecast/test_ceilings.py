"""A few kernels alone: right on this machine, seen where they are not, and timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.forecast import ceilings
from lowmem_layers.forecast.ceilings import check_kernels, measure_ceilings, random_int8, random_nf4
from lowmem_layers.forecast.machine import Machine
from lowmem_layers.model.formats import unpacked

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_are_right_and_kernels_that_are_not(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_kernels(CPU, dtype) == []
    real, calls = ceilings.unpack, []

    def unpack(packed: Any, out: torch.Tensor) -> None:
        real(packed, out)
        calls.append(out)
        if len(calls) == 1:  # what the device makes of it
            out[3, 5] += 0.5

    monkeypatch.setattr(ceilings, "unpack", unpack)
    (found,) = check_kernels(CPU, dtype)
    assert found.startswith("NF4 is unpacked differently than on the CPU, by up to 0.5")
    monkeypatch.setattr(ceilings, "unpack", real)
    own = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda a, b: own(a, b) * 1.2)
    (found,) = check_kernels(CPU, dtype)
    assert found.startswith("a matrix product is off by")


@pytest.mark.parametrize("make", [random_nf4, random_int8])
def test_random_codes_make_rows_with_a_length_of_about_one(make: Any) -> None:
    lengths = unpacked(make((64, 512)), torch.float32).norm(dim=1)  # (64,)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.25)


def test_every_kernel_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_PIECE_BYTES", (1 << 20, 0))
    monkeypatch.setattr(ceilings, "read_fresh_file", lambda folder: 2e9 if folder == tmp_path else 0.0)
    found = list(measure_ceilings(CPU, torch.float32, tmp_path, seconds=0.001, products=[(8, 16, 32)]))
    assert [each.unit for each in found] == ["TFLOP/s", *["GB/s"] * 3, *["10⁹ numbers/s"] * 2]
    assert all(each.value > 0 for each in found)
    assert (found[0].what, found[3].value) == ("product (8 × 16) · (16 × 32)", 2.0)


def test_doctor_says_what_is_wrong_with_a_kernel(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = Machine("m", 1e12, 25e9, 3e9, 500e9, 8 << 30, True, False)
    monkeypatch.setattr("lowmem_layers.forecast.machine.measure_machine", lambda *_, **__: machine)
    assert run_command_line(["doctor", "--device", "cpu"]) == 0
    said = capfd.readouterr().out
    assert "NF4, a product and copies are right on cpu" in said
    assert "2 TFLOP/s of products; GB/s: 500 in memory, 3 from disk" in said
    monkeypatch.setattr(ceilings, "check_kernels", lambda *_: ["a matrix product is off by 3"])
    assert run_command_line(["doctor", "--device", "cpu"]) == 1
    said = capfd.readouterr()
    assert "BAD  kernels" in said.out
    assert "update the driver" in said.err

    def fail(*_: object) -> None:  # torch was built without the card's kernels
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\n…")

    monkeypatch.setattr(ceilings, "check_kernels", fail)
    assert run_command_line(["doctor", "--device", "cpu"]) == 1
    assert "BAD kernels CUDA error: no kernel image" in " ".join(capfd.readouterr().out.split())
    assert run_command_line(["doctor", "--device", "tpu"]) == 2
