"""A weight unpacked piece by piece, expert by expert, or joined from packed parts is the same weight, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import pytest
import torch

from lowmem_layers.model.formats import DENSE, FOUR_BIT, GGUF, GPTQ, INT8, Packed, stack, unpack, unpack_slice
from lowmem_layers.model.formats.format import PIECE_NUMBERS
from lowmem_layers.model.formats.gptq import GptqConfig


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def as_gguf(exact: torch.Tensor) -> Packed:
    blocks = gguf.quants.quantize(exact.numpy(), gguf.GGMLQuantizationType.Q4_1)
    return GGUF.pack(torch.from_numpy(blocks), "Q4_1", tuple(exact.shape))


def as_gptq(exact: torch.Tensor) -> Packed:
    """Make any codes: what they stand for does not matter here."""
    outputs, inputs = exact.shape
    random = torch.Generator().manual_seed(int(exact[0, 0].abs() * 1000))
    tensors = {
        "qweight": torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), generator=random).int(),
        "qzeros": torch.randint(-(2**31), 2**31 - 1, (inputs // 32, outputs // 8), generator=random).int(),
        "scales": torch.rand(inputs // 32, outputs, generator=random).half(),
    }
    return GPTQ.read("w.weight", tensors, GptqConfig(4, 32), "file")


PACKERS: dict[str, Callable[[torch.Tensor], Packed]] = {
    "dense": DENSE.pack,
    "int8": INT8.pack,
    "nf4": FOUR_BIT.pack,
    "nf4 nested": lambda exact: FOUR_BIT.pack(exact, double_quant=True),
    "gguf": as_gguf,
}


def unpacked(packed: Packed, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.empty(packed.shape, dtype=dtype)
    unpack(packed, out)
    return out


@pytest.mark.parametrize("name", [*PACKERS, "gptq"])
def test_small_pieces_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = (PACKERS | {"gptq": as_gptq})[name](weight(64, 96))
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.undo()
        whole = unpacked(packed, dtype)
        monkeypatch.setitem(PIECE_NUMBERS, "cpu", 5 * 96)
        assert torch.equal(unpacked(packed, dtype), whole)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("shape", [(4, 32, 64), (3, 5, 32)])  # the second cuts blocks of 64 in two
def test_one_expert_is_a_slice_of_all(name: str, shape: tuple[int, ...]) -> None:
    packed = PACKERS[name](weight(*shape))
    whole = unpacked(packed)
    for index in range(shape[0]):
        one = torch.empty(shape[1:])
        unpack_slice(packed, index, one)
        assert torch.equal(one, whole[index])


def test_biases_are_sliced_too() -> None:
    exact = weight(4, 6)
    one = torch.empty(6)
    unpack_slice(DENSE.pack(exact), 2, one)
    assert torch.equal(one, exact[2])


@pytest.mark.parametrize("pack", [as_gptq, PACKERS["nf4 nested"]], ids=["gptq", "nf4 nested"])
def test_joined_experts_are_those_of_the_checkpoint(pack: Callable[[torch.Tensor], Packed]) -> None:
    halves = [[pack(weight(32, 64) * (index + half + 1)) for half in range(2)] for index in range(3)]
    packed = stack(halves, (3, 64, 64))
    expected = torch.stack([torch.cat([unpacked(half) for half in expert]) for expert in halves])
    assert torch.equal(unpacked(packed), expected)
    for index in range(3):
        one = torch.empty(64, 64)
        unpack_slice(packed, index, one)
        assert torch.equal(one, expected[index])


def test_what_is_packed_differently_is_not_joined() -> None:
    with pytest.raises(ValueError, match="not packed alike"):
        stack([[as_gptq(weight(32, 64))], [INT8.pack(weight(32, 64))]], (2, 32, 64))
    with pytest.raises(ValueError, match="does not fill"):
        stack([[INT8.pack(weight(32, 64))]], (1, 32, 65))
