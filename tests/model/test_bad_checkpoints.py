"""Every damaged or foreign checkpoint is refused with one line that names what is wrong, and a hint."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowmem_layers.errors import CheckpointError, ModelError, UsageError
from lowmem_layers.model import ModelSpec, load_model
from tests.model.conftest import save_model, tiny_tokenizer

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWMEM_LAYERS_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model", "llama")
    return tmp_path / "model"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil(tensor: torch.Tensor, value: float) -> None:
    tensor.view(-1)[5] = value


def check_refused(folder: Path | str, kind: type[UsageError], message: str, **spec: str) -> UsageError:
    with pytest.raises(kind, match=message) as caught:
        load_model(ModelSpec(str(folder), dtype="float32", device="cpu", **spec))  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


def test_a_truncated_shard(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    check_refused(folder, CheckpointError, r"model\.safetensors is truncated: model\S+ ends at byte")


def test_a_shard_cut_inside_its_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    check_refused(folder, CheckpointError, r"model\.safetensors is truncated or not a safetensors file")


def test_a_damaged_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:20] = b"x" * 12
    file.write_bytes(content)
    check_refused(folder, CheckpointError, r"model\.safetensors has a damaged header")


@pytest.mark.parametrize("name", [NAME, "model.norm.weight", "model.layers.2.input_layernorm.weight"])
def test_a_missing_tensor(folder: Path, name: str) -> None:
    change(folder, lambda tensors: tensors.__delitem__(name))
    check_refused(folder, CheckpointError, f"lacks the tensor {name}")


def test_a_wrong_shape(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({NAME: torch.zeros(96, 63)}))
    check_refused(folder, CheckpointError, rf"{NAME} has shape \(96, 63\), the config asks for \(96, 64\)")


@pytest.mark.parametrize("name", [NAME, "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(folder: Path, name: str, value: float) -> None:
    change(folder, lambda tensors: spoil(tensors[name], value))
    check_refused(folder, CheckpointError, rf"model\.safetensors: {name} holds NaN or infinite numbers")


def test_a_tensor_the_model_has_no_place_for(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"model.layers.1.mlp.extra.weight": torch.zeros(3)}))
    check_refused(folder, CheckpointError, r"no place for the tensor model\.layers\.1\.mlp\.extra\.weight")


def test_an_index_that_names_what_is_not_there(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    shards[0].unlink()
    check_refused(tmp_path / "model", CheckpointError, f"{shards[0].name} is missing from")


def test_a_truncated_checkpoint_leaves_no_cache(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda tensors: spoil(tensors[NAME], float("nan")))
    check_refused(folder, CheckpointError, "NaN", quant="4bit")
    assert not list((tmp_path / "cache").glob("*"))


def test_an_unknown_quantisation(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "magic", "bits": 4})
    check_refused(folder, CheckpointError, "the checkpoint is quantised by 'magic'")


@pytest.mark.parametrize("bits", [5, "four", None])
def test_a_gptq_config_of_an_impossible_width(folder: Path, bits: object) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": bits})
    check_refused(folder, CheckpointError, f"the GPTQ config says {bits!r} bits")


def test_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    check_refused(folder, ModelError, r"pytorch_model\.bin is a pickle")


def test_no_weights_no_config_no_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    check_refused(folder, ModelError, "holds no weights")
    (folder / "config.json").unlink()
    check_refused(folder, ModelError, r"holds no config\.json")
    check_refused(folder / "nowhere", ModelError, "does not exist")
    (folder / "notes.txt").write_text("hello")
    check_refused(folder / "notes.txt", ModelError, "is not a model")


def test_an_unknown_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_refused("nobody/nothing-at-all", ModelError, "not on this machine and the model hub cannot be reached")
    check_refused("no such id!", ModelError, "neither a folder here nor a hub id")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "someone/some cannot be downloaded: No space left on device",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "someone/some cannot be downloaded: Permission denied"),
        (ConnectionError("refused"), "someone/some is not on this machine and the model hub cannot be reached"),
    ],
)
def test_a_download_that_fails_says_why(error: OSError, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    check_refused("someone/some", ModelError, message)


def test_models_own_code_is_not_run_unasked(folder: Path) -> None:
    edit_config(folder, model_type="homemade", auto_map={"AutoConfig": "configuration.Homemade"})
    error = check_refused(folder, ModelError, "comes with its own Python code")
    assert "--trust-remote-code" in error.hint


def test_an_unknown_model_type(folder: Path) -> None:
    edit_config(folder, model_type="homemade")
    check_refused(folder, ModelError, "model type 'homemade'")


def test_an_unknown_kind_of_rotary_scaling(folder: Path) -> None:
    edit_config(folder, rope_parameters={"rope_type": "sideways", "factor": 2.0, "rope_theta": 1e4})
    check_refused(folder, ModelError, "it asks for 'sideways', which is not known")


def test_encoders_and_encoder_decoders(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(**small, vocab_size=256)).save_pretrained(tmp_path / "bert")
    t5 = T5Config(d_model=32, num_layers=2, num_heads=2, d_ff=64, vocab_size=256)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    check_refused(tmp_path / "bert", ModelError, r"is an encoder model \(bert\)")
    check_refused(tmp_path / "t5", ModelError, r"is an encoder-decoder model \(t5\)")


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    check_refused(folder, ModelError, "has no tokenizer that can be read")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_one() -> None:
    with pytest.raises(ModelError, match=r"--device cuda, but torch .* sees no GPU"):
        load_model(ModelSpec(device="cuda"))


def test_a_contradicting_gptq_config(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 8, "group_size": 32})
    stem = NAME.removesuffix(".weight")

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[NAME]
        tensors[f"{stem}.qweight"] = torch.zeros(8, 96, dtype=torch.int32)  # four bits
        tensors[f"{stem}.qzeros"] = torch.zeros(2, 12, dtype=torch.int32)
        tensors[f"{stem}.scales"] = torch.ones(2, 96, dtype=torch.float16)

    change(folder, pack)
    check_refused(folder, CheckpointError, rf"{stem}\.qzeros has shape \(2, 12\), but 8 bits in groups of 32")


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_tiny_tokenizer_is_one_token_a_byte() -> None:
    assert len(tiny_tokenizer()("héllo").input_ids) == 6


@pytest.mark.parametrize(
    ("name", "place", "wrong", "message"),
    [
        ("tokenizer.json", ("model", "vocab", "A"), [1], "no tokenizer that can be read: Exception: invalid type"),
        ("tokenizer_config.json", ("tokenizer_class",), [], "no tokenizer that can be read: TypeError"),
        ("tokenizer_config.json", ("model_max_length",), "0", "no tokenizer that can be read: TypeError"),
        ("config.json", ("quantization_config",), {"quant_method": "fp8", "weight_block_size": [{}, 1]}, "TypeError"),
        ("config.json", ("num_hidden_layers",), 2**63, r"num_hidden_layers is 9.223e\+18; no model"),
        ("config.json", ("vocab_size",), 0, "no causal language model can be built from this config: index 0"),
        ("config.json", ("model_type",), [], "has the model type"),
        ("model.safetensors", (NAME, "dtype"), {}, "lacks its type, shape or place"),
        ("model.safetensors", (NAME, "data_offsets"), [float("-inf"), 0], "lacks its type, shape or place"),
        ("model.safetensors", (NAME, "shape"), [96.0, 64], "lacks its type, shape or place"),
    ],
)  # fmt: skip
def test_what_fuzzing_found(folder: Path, name: str, place: tuple[str, ...], wrong: object, message: str) -> None:
    """Values of types that nobody writes, in files of which libraries check little."""
    path = folder / name
    content = path.read_bytes()
    binary = path.suffix == ".safetensors"
    length = int.from_bytes(content[:8], "little") if binary else len(content)
    stored = json.loads(content[8 : 8 + length] if binary else content)
    node = stored
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = wrong
    text = json.dumps(stored).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :] if binary else text)
    check_refused(folder, ModelError if not binary else CheckpointError, message)


@pytest.mark.parametrize(
    ("error", "ours"), [(AttributeError("no such thing"), True), (ValueError("no model"), False)], ids=str
)
def test_a_fault_of_this_package_is_not_blamed_on_the_files_alone(
    folder: Path, error: Exception, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr("lowmem_layers.model.load.dissect", broken)
    refusal = check_refused(folder, ModelError, "its config makes no model that can be taken apart")
    assert refusal.__cause__ is error  # which --debug shows, with the place
    assert ("the fault is lowmem-layers' own: --debug shows where" in refusal.hint) == ours
