"""GPTQ against a packer and a dequantisation written bit by bit from the format's description."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.packing import own_packing
from lowmem_layers.model.formats import GPTQ, gptq, unpack
from lowmem_layers.model.formats.gptq import GptqConfig
from tests.model.conftest import Header


def pack_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Write each row's codes as one little-endian bit stream of 32-bit words, one bit at a time."""
    rows, n = codes.shape
    words = np.zeros((rows, n * bits // 32), dtype=np.uint64)
    for index in range(n):
        for bit in range(bits):
            position = index * bits + bit
            words[:, position // 32] |= ((codes[:, index].astype(np.uint64) >> bit) & 1) << (position % 32)
    return words.astype(np.uint32).view(np.int32)


def example(bits: int, group_size: int, *, act_order: bool, version: int, seed: int = 0):
    """Build random codes, their packed tensors and the dense weight they stand for."""
    inputs, outputs = 128, 64
    random = np.random.default_rng(seed)
    size = inputs if group_size < 0 else group_size
    groups = inputs // size
    codes = random.integers(0, 1 << bits, (outputs, inputs))
    zeros = random.integers(1, 1 << bits, (groups, outputs))
    scales = random.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
    group = np.arange(inputs) // size
    if act_order:
        random.shuffle(group)
    dense = np.empty((outputs, inputs), dtype=np.float32)
    for i in range(inputs):
        dense[:, i] = (codes[:, i] - zeros[group[i]]).astype(np.float32) * scales[group[i]].astype(np.float32)
    stored = zeros - 1 if version == 1 else zeros
    tensors = {
        "qweight": torch.from_numpy(pack_stream(codes, bits).T.copy()),
        "qzeros": torch.from_numpy(pack_stream(stored, bits)),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(group.astype(np.int32)),
    }
    return tensors, torch.from_numpy(dense)


@pytest.mark.parametrize("bits", gptq.BITS)
@pytest.mark.parametrize(("group_size", "act_order"), [(32, False), (32, True), (-1, False)])
@pytest.mark.parametrize("version", [1, 2])
def test_unpacks_to_the_bit(bits: int, group_size: int, act_order: bool, version: int) -> None:
    tensors, dense = example(bits, group_size, act_order=act_order, version=version)
    packed = GPTQ.read("q_proj.weight", tensors, GptqConfig(bits, group_size, version), "file")
    out = torch.empty(packed.shape)
    unpack(packed, out)
    assert torch.equal(out, dense)
    rounded = torch.empty(packed.shape, dtype=torch.bfloat16)
    unpack(packed, rounded)
    assert torch.equal(rounded, dense.bfloat16())


@pytest.mark.parametrize("bits", gptq.BITS)
def test_reads_the_zeros_of_gptqmodel_before_its_version_7(bits: int) -> None:
    tensors, dense = example(bits, 32, act_order=False, version=2)
    ones = np.resize(np.array(gptq._GPTQMODEL_ONES[bits], dtype=np.uint32), tensors["qzeros"].shape[1])
    with np.errstate(over="ignore"):
        minus_one = tensors["qzeros"].numpy().view(np.uint32) - ones  # whole words, with borrow
    tensors["qzeros"] = torch.from_numpy(minus_one.view(np.int32))
    packed = GPTQ.read("q_proj.weight", tensors, GptqConfig(bits, 32, 1, "gptqmodel", 6), "file")
    out = torch.empty(packed.shape)
    unpack(packed, out)
    assert torch.equal(out, dense)


def test_three_bit_zeros_of_gptqmodel_since_its_version_7_are_fields() -> None:
    tensors, dense = example(3, 32, act_order=False, version=1)
    packed = GPTQ.read("q_proj.weight", tensors, GptqConfig(3, 32, 1, "gptqmodel", 7), "file")
    out = torch.empty(packed.shape)
    unpack(packed, out)
    assert torch.equal(out, dense)


def test_settings_by_module() -> None:
    tensors, dense = example(8, 64, act_order=False, version=1)
    about = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "meta": {"quantizer": ["x:1"]},
        "dynamic": {r"-:.*\.v_proj": {}, r".*\.q_proj": {"bits": 8, "group_size": 64}},
    }  # fmt: skip
    own = own_packing(about)
    assert own is not None
    packed = GPTQ.read("layers.0.q_proj.weight", tensors, own.settings, "file")
    out = torch.empty(packed.shape)
    unpack(packed, out)
    assert torch.equal(out, dense)
    assert own.settings.of("layers.0.k_proj").bits == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "says 5 bits"),
        ({"group_size": 0}, "says group_size 0"),
        ({"group_size": "many"}, "says group_size 'many'"),
        ({"pack_dtype": "int64"}, "says pack_dtype 'int64'"),
        ({"checkpoint_format": "gptq_p"}, "says checkpoint_format 'gptq_p'"),
        ({"dynamic": {"+:.*": {"bits": 7}}}, "says 7 bits"),
        ({"dynamic": {"+:(": {}}}, "is no pattern"),
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        own_packing({"quant_method": "gptq", "bits": 4, "group_size": 32} | changes)
    assert caught.value.hint


def test_refuses_an_order_that_the_config_denies() -> None:
    tensors, _ = example(4, 32, act_order=True, version=1)
    with pytest.raises(CheckpointError, match=r"q_proj\.g_idx is not in the order of groups of 32"):
        GPTQ.read("q_proj.weight", tensors, GptqConfig(4, 32, act_order=False), "file")
    GPTQ.read("q_proj.weight", tensors, GptqConfig(4, 32, act_order=True), "file")


def test_a_file_without_g_idx_has_its_groups_in_order() -> None:
    tensors, dense = example(4, 32, act_order=False, version=1)
    del tensors["g_idx"]
    packed = GPTQ.read("q_proj.weight", tensors, GptqConfig(4, 32), "file")
    out = torch.empty(packed.shape)
    unpack(packed, out)
    assert torch.equal(out, dense)


@pytest.mark.parametrize("has_g_idx", [True, False])
def test_the_bytes_at_home_are_known_from_headers(has_g_idx: bool) -> None:
    tensors, _ = example(4, 32, act_order=False, version=1)
    if not has_g_idx:
        del tensors["g_idx"]
    headers = {part: Header(tuple(tensor.shape), tensor.nbytes) for part, tensor in tensors.items()}
    packed = GPTQ.read("q_proj.weight", tensors, GptqConfig(4, 32), "file")
    assert GPTQ.home_bytes("q_proj.weight", headers, GptqConfig(4, 32)) == packed.n_bytes


@pytest.mark.parametrize("config", [GptqConfig(8, 32), GptqConfig(4, 64), GptqConfig(4, -1)])
def test_refuses_a_config_that_contradicts_the_tensors(config: GptqConfig) -> None:
    tensors, _ = example(4, 32, act_order=False, version=1)
    with pytest.raises(CheckpointError, match=r"q_proj\.qzeros has shape"):
        GPTQ.read("q_proj.weight", tensors, config, "file")


def test_refuses_a_missing_tensor_and_a_group_that_does_not_exist() -> None:
    tensors, _ = example(4, 32, act_order=False, version=1)
    with pytest.raises(CheckpointError, match="lacks scales"):
        GPTQ.read("q_proj.weight", {k: v for k, v in tensors.items() if k != "scales"}, GptqConfig(4, 32), "file")
    tensors["g_idx"][3] = 9
    with pytest.raises(CheckpointError, match="names group 9 of 4"):
        GPTQ.read("q_proj.weight", tensors, GptqConfig(4, 32), "file")
