"""Sublayers that are quantised, averaged or run twice: the sweep equals plain transformers with other weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from gguf import GGMLQuantizationType, quants

from benchmarks import families_build
from lowmem_layers.engine import Changes, ready_engine, reference_loglikelihoods
from lowmem_layers.engine.trunk import branch_means
from lowmem_layers.errors import ModelError, UsageError
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.game.players.tree import prefix_tree
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.change import NO_QUANTISER, QUANT_FORMATS, parse_change
from lowmem_layers.model.formats.k_quants import K_QUANTISERS
from lowmem_layers.model.homes import rounding
from lowmem_layers.model.homes.places import streamed_places
from lowmem_layers.model.homes.rounding import Shelf, check_rows
from tests import families
from tests.engine import conftest as routes

COALITIONS = [(), (1,), (2,), (0, 1), (2, 3), (0, 3, 5)]
ATTENTION = ("self_attn", "attn", "attention", "self_attention")


def engine_of(module, change, items=()):
    model = DecoderModel(module)
    model.examine()
    means = branch_means(model, items, 1 << 30) if change == "mean" else None
    return ready_engine(model, changes=Changes.alike(len(model.players), parse_change(change), means))


def by_a_library(weight, name):
    """Quantise and unpack one matrix (rows of inputs) with the library whose format it is, or by its published rule."""
    if name in ("nf4", "fp4"):
        codes, state = functional.quantize_4bit(weight.contiguous(), blocksize=64, quant_type=name)
        return functional.dequantize_4bit(codes, state)
    if name == "int8":  # LLM.int8's weights: 127 levels on either side of zero, of each row's largest
        scale = weight.abs().amax(-1, keepdim=True) / 127
        return (weight / scale).round() * scale
    kind = GGMLQuantizationType[name.upper()]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))


def quantise_in_place(module, positions, name):
    """Replace the weights of sublayers of a plain transformers model, found by their usual names."""
    for path, part in module.named_modules():
        parts = path.split(".")
        number = next((int(each) for each in parts if each.isdigit()), None)
        inside = [each for each in parts if each in (*ATTENTION, "mlp")]
        if number is None or not inside or 2 * number + (inside[0] == "mlp") not in positions:
            continue
        for weight_name, weight in part.named_parameters(recurse=False):
            is_linear = type(part).__name__ in ("Linear", "Conv1D") and weight_name == "weight"
            is_stack = weight.dim() == 3 and "bias" not in weight_name
            if not is_linear and not is_stack:
                continue
            turned = type(part).__name__ == "Conv1D" or getattr(part, "is_transposed", False)
            rows = weight.data.transpose(-1, -2).contiguous() if turned else weight.data
            found = by_a_library(rows.reshape(-1, rows.shape[-1]), name).reshape(rows.shape)
            weight.data = found.transpose(-1, -2).contiguous() if turned else found


@pytest.mark.parametrize(("family", "name"), [
    ("llama", "nf4"), ("gemma2", "int8"), ("phi", "fp4"), ("mixtral", "int8"), ("gpt_oss", "nf4"), ("gpt2", "q4_0"),
])  # fmt: skip
def test_a_quantised_sublayer_is_the_librarys(family, name):
    items, module = routes.random_items(2), families.tiny_model(family)
    found = engine_of(module, f"quantise:{name}").score(items, COALITIONS)
    for row, changed in enumerate(COALITIONS):
        plain = families.tiny_model(family)
        quantise_in_place(plain, changed, name)
        (expected,) = zip(*routes.hooked_loglikelihoods(plain, {}, items, [()]), strict=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert np.abs(ours[row] - theirs).max() < 1e-5
    assert min(np.abs(ours[1:] - ours[:1]).max() for ours in found) > 1e-4, "the change would not be seen"


def doubled(module, position):
    """Build a plain model in which one sublayer runs twice: its layer twice, without the other sublayer once."""
    layer = position // 2
    twice = copy.deepcopy(module)
    extra = copy.deepcopy(twice.model.layers[layer])
    silent = extra.mlp.down_proj if position % 2 == 0 else extra.self_attn.o_proj
    silent.weight.data.zero_()
    twice.config.num_hidden_layers += 1
    twice.config.use_cache = False  # both copies would write to the same place of it
    twice.model.layers.insert(layer if position % 2 == 0 else layer + 1, extra)
    return twice


def test_a_repeated_sublayer_is_a_model_with_one_more():
    items, module = routes.random_items(2), families.tiny_model("llama")
    found = engine_of(copy.deepcopy(module), "repeat").score(items, [(2,), (3,)])
    for row, position in enumerate((2, 3)):
        (expected,) = zip(*routes.hooked_loglikelihoods(doubled(module, position), {}, items, [()]), strict=True)
        for ours, theirs in zip(found, expected, strict=True):
            assert np.abs(ours[row] - theirs).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_mean_is_that_of_all_tokens_of_the_right_answers(family):
    items, module = routes.random_items(3), families.tiny_model(family)
    sublayers = [part for path, part in module.named_modules() if path.split(".")[-1] in (*ATTENTION, "mlp")]
    seen = {part: [] for part in sublayers}
    first = [part.register_forward_hook(lambda m, _a, out: seen[m].append(out[0] if isinstance(out, tuple) else out))
             for part in sublayers]  # fmt: skip
    for item in items:
        routes.score_choice(module, item.choices[item.gold])
    for handle in first:
        handle.remove()
    expected = []
    for changed in COALITIONS:

        def averaged(part, _args, out):
            mean = torch.cat([each[0] for each in seen[part]]).mean(0)
            return (mean.expand_as(out[0]), *out[1:]) if isinstance(out, tuple) else mean.expand_as(out)

        handles = [sublayers[position].register_forward_hook(averaged) for position in changed]
        expected.append([[routes.score_choice(module, choice) for choice in item.choices] for item in items])
        for handle in handles:
            handle.remove()
    found = engine_of(module, "mean", items).score(items, COALITIONS)
    for place, ours in enumerate(found):
        assert np.abs(ours - np.array([of[place] for of in expected])).max() < 1e-5


@pytest.mark.parametrize(("room", "share"), [(1 << 20, 1.0), (3000, 0.5)])
def test_quantised_weights_are_made_once_where_there_is_room_and_give_the_same_numbers(monkeypatch, room, share):
    items, made = routes.random_items(2), []
    anew = engine_of(families.tiny_model("gpt2"), "quantise:q4_0").score(items, COALITIONS)
    real = rounding.quantised
    monkeypatch.setattr(rounding, "quantised", lambda weight, into: made.append(real(weight, into)) or made[-1])
    shelf = Shelf(room)
    changes = Changes.alike(6, parse_change("quantise:q4_0"), shelf=shelf)
    engine = ready_engine(DecoderModel(families.tiny_model("gpt2")), changes=changes)
    for _ in range(2):
        for ours, theirs in zip(engine.score(items, COALITIONS), anew, strict=True):
            assert np.array_equal(ours, theirs)
    assert 0 < len(made) <= share * 12, "attention and feed-forward of three layers have two matrices each"
    assert sum(packed.n_bytes for packed in made) == room - shelf.room_bytes


@pytest.mark.parametrize("change", ["quantise:nf4", "repeat"])
def test_applications_are_counted(change):
    engine = engine_of(families.tiny_model("llama"), change)
    engine.score(routes.random_items(1), windows(6, 2))
    n_passes = parse_change(change).passes
    tree = prefix_tree(windows(6, 2), 6, [n_passes] * 6)
    removed = prefix_tree(windows(6, 2), 6)
    n_changed = sum(len(step.changed) for step in removed.steps)
    assert tree.applications == removed.applications + n_passes * n_changed
    assert engine.counted_applications % tree.applications == 0


def test_each_sublayer_may_have_a_change_of_its_own():
    items, module = routes.random_items(2), families.tiny_model("gpt2")
    model = DecoderModel(copy.deepcopy(module))
    changes = Changes(
        tuple(parse_change(f"quantise:{name}") for name in ("nf4", "q8_0", "q4_0", "int8", "q5_1", "fp4"))
    )
    found = ready_engine(model, changes=changes).score(items, [(), tuple(range(6))])
    for position, change in enumerate(changes.of):
        quantise_in_place(module, {position}, change.format.name)
    (expected,) = zip(*routes.hooked_loglikelihoods(module, {}, items, [()]), strict=True)
    assert max(np.abs(ours[1] - theirs).max() for ours, theirs in zip(found, expected, strict=True)) < 1e-5


def test_layers_that_run_side_by_side_or_as_a_whole_refuse_what_has_no_meaning():
    with pytest.raises(UsageError, match="read the same input"):
        engine_of(families.tiny_model("phi"), "repeat")
    model = DecoderModel(families.tiny_model("llama"))
    model.examine()
    whole = copy.copy(model)
    whole._examined = tuple(copy.copy(each) for each in model._examined[0]), model._examined[1]
    for program in whole._examined[0]:
        object.__setattr__(program, "whole", "a decoder layer holds two attentions")
    with pytest.raises(UsageError, match="needs layers that add one sublayer after another: a decoder layer holds two"):
        ready_engine(whole, changes=Changes.alike(6, parse_change("mean"), torch.zeros(6, 32)))


def test_rows_that_are_no_whole_blocks_are_refused_by_name_before_a_weight_is_read():
    model = DecoderModel(families.tiny_model("llama"))
    places = list(streamed_places(model._found, "model.layers", torch.float32))
    with pytest.raises(ModelError, match=r"q4_0 packs blocks of 32 numbers, and the rows of model.layers.0.mlp.down_p"):
        check_rows(places, {(0, "ffn")}, QUANT_FORMATS["q4_0"])
    assert not check_rows(places, {(0, "attn")}, QUANT_FORMATS["q4_0"])
    said = check_rows(places, {(0, "attn"), (1, "attn")}, QUANT_FORMATS["q3_k"])
    assert "256 numbers of a row at a time: 8 of 8 matrices have rows of 32, and are rounded to q4_0" in said
    with pytest.raises(ModelError, match="decoder layer 9: what stands in the place of attn has no linear weights"):
        check_rows(places, {(9, "attn")}, QUANT_FORMATS["nf4"])


def test_every_llama_cpp_format_has_a_quantiser_or_is_refused_by_name():
    rows = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    for name, row in QUANT_FORMATS.items():
        if row.runtime == "llama.cpp" and name not in K_QUANTISERS:  # those have a test of their own
            kind = GGMLQuantizationType[name.upper()]
            assert quants.quantize(rows, kind).nbytes * 8 / rows.size == row.bits
    for name in NO_QUANTISER:
        with pytest.raises(NotImplementedError):
            quants.quantize(rows, GGMLQuantizationType[name.upper()])
        with pytest.raises(UsageError, match=f"{name} is read here, but there is no quantiser"):
            parse_change(f"quantise:{name}")
    for wrong in ("quantise", "quantise:q4_9", "remove:q4_0", "quantise:", "drop"):
        with pytest.raises(UsageError):
            parse_change(wrong)


def test_the_reference_agrees_where_whole_layers_are_driven():
    """LongCat's layers hold two attentions: they run as a whole, quantised sublayers among them."""
    model = DecoderModel(families_build.tiny_model("longcat_flash"))
    model.examine()
    assert all(program.whole for program in model.programs)
    items = routes.random_items(1)
    changes = Changes.alike(len(model.players), parse_change("quantise:int8"))
    coalitions = [(), (0,), (1,), (0, 1)]
    ours = ready_engine(model, changes=changes).score(items, coalitions)
    theirs = reference_loglikelihoods(model, items, coalitions, changes)
    assert np.abs(ours[0] - theirs[0]).max() < 1e-5 < np.abs(ours[0][1:] - ours[0][0]).max()
