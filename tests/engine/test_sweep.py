"""Sweep = whole forward passes, in every family, for windows and scattered coalitions, at counted cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from transformers.models.gemma2 import modeling_gemma2

from lowmem_layers.engine import Engine, Sizes, batches, ready_engine, reference_loglikelihoods
from lowmem_layers.engine.trie import plain_rows
from lowmem_layers.errors import EngineError, RemovalError
from lowmem_layers.game.players.tree import prefix_tree, windows_formula
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem
from tests import families
from tests.engine import conftest as routes

N = 2 * families.LAYERS
WINDOWS = [()] + [tuple(range(i, i + k)) for k in range(1, 4) for i in range(N - k + 1)]
SCATTERED = [(0, 2, 5), (1, 4), (0, 1, 2, 3, 4, 5), (0, 3), (2, 4, 5)]
TRIE_LESS = {"falcon-alibi", "bloom", "mpt"}
PARTLY_FLOAT32 = {"gptj": 1e-6, "deepseek_v3": 1e-6}  # these compute positions, or routing, in float32 even in float64
FFN_NAMES = ("mlp", "ffn", "fc2")
ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")


def sublayers_by_name(module):
    """List the sublayers of a transformers model by their usual names: this test's own way to find them."""
    found = {}
    for path, child in module.named_modules():
        parent, _, name = path.rpartition(".")
        if parent.rpartition(".")[2].isdigit() and name in ATTENTION_NAMES + FFN_NAMES:
            layer = int(parent.rpartition(".")[2])
            found[2 * layer + (name in FFN_NAMES)] = child
    return found


def largest_gap(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_sweep_equals_whole_passes_of_plain_transformers_in_float32(family):
    items = routes.random_items(4)
    coalitions = WINDOWS + SCATTERED
    module = families.tiny_model(family)
    expected = routes.hooked_loglikelihoods(module, sublayers_by_name(module), items, coalitions, family)
    engine = ready_engine(DecoderModel(module))
    assert largest_gap(engine.score(items, coalitions), expected) < 1e-5
    assert engine.layout == ("rows" if family in TRIE_LESS else "trie")


IN_DOUBLE = ("llama", "gemma2", "phi", "gptj", "deepseek_v3", "mixtral", "gpt_oss", "bloom", "gpt2", "olmo2", "cohere")
"""One family of each anatomy; the others are slow tests."""


@pytest.mark.parametrize(
    "family",
    [each if each in IN_DOUBLE else pytest.param(each, marks=pytest.mark.slow) for each in families.FAMILIES],
)
def test_sweep_equals_the_reference_in_float64(family, monkeypatch):
    if family == "gemma2":  # its eager attention has a softmax in float32, whose rounding depends on a row's length
        monkeypatch.setattr(modeling_gemma2.nn.functional, "softmax", lambda x, dim, dtype: x.softmax(dim))
    items = routes.random_items(3, seed=1)
    coalitions = WINDOWS[::2] + SCATTERED
    model = DecoderModel(families.tiny_model(family, dtype=torch.float64, seed=1))
    gap = largest_gap(ready_engine(model).score(items, coalitions), reference_loglikelihoods(model, items, coalitions))
    assert gap < PARTLY_FLOAT32.get(family, 1e-10)


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2", "opt", "gpt_oss"])
def test_plain_rows_give_the_same_numbers_as_tries(family):
    items = routes.random_items(4, seed=2)
    model = DecoderModel(families.tiny_model(family))
    tries, rows = (ready_engine(model, layout=layout).score(items, WINDOWS) for layout in ("trie", "rows"))
    assert largest_gap(tries, rows) < 1e-5


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_the_likeliest_tokens_have_is_read_off_the_same_rows(family):
    plain = [replace(item, choices=item.choices[:1]) for item in routes.random_items(3, seed=5)]
    items = [replace(each, choices=(each.choices[0], replace(each.choices[0], is_likeliest=True))) for each in plain]
    assert sum(map(len, plain_rows(items))) == sum(map(len, plain_rows(plain)))
    model = DecoderModel(families.tiny_model(family))
    found, expected = ready_engine(model).score(items, WINDOWS), reference_loglikelihoods(model, items, WINDOWS)
    assert largest_gap(found, expected) < 1e-5
    for ours, theirs in zip(found, expected, strict=True):  # where it would have written the tokens, both are equal
        assert (ours[:, 1] >= ours[:, 0]).all()
        assert np.array_equal(ours[:, 1] == ours[:, 0], theirs[:, 1] == theirs[:, 0])


def test_a_wrong_value_would_be_seen():
    items = routes.random_items(2)
    module = families.tiny_model("llama")
    right = routes.hooked_loglikelihoods(module, sublayers_by_name(module), items, [(), (2,)])
    swapped = routes.hooked_loglikelihoods(module, sublayers_by_name(module), items, [(), (3,)])
    assert largest_gap(right, swapped) > 1e-2


@pytest.mark.parametrize("family", ["llama", "phi", "gpt2"])
def test_the_numbers_do_not_depend_on_the_company(family):
    items = routes.random_items(6, seed=3)
    model = DecoderModel(families.tiny_model(family))
    together = ready_engine(model).score(items, WINDOWS)
    small = ready_engine(model, sizes=Sizes(chunk_tokens=16, head_rows=3, softmax_rows=2))
    for index, item in enumerate(items):
        assert largest_gap(small.score([item], WINDOWS), together[index : index + 1]) < 1e-5
    for column, removed in enumerate(WINDOWS):
        (alone,) = ready_engine(model, layout="trie").score(items[:1], [removed])
        assert np.abs(alone[0] - together[0][column]).max() < 1e-5


class Calls:
    """Counts, by hooks on the model's own modules, how many states each sublayer is called with."""

    def __init__(self, module, tokens):
        self.rows = 0
        self.tokens = tokens
        self.handles = [
            child.register_forward_pre_hook(self.count, with_kwargs=True)
            for child in sublayers_by_name(module).values()
        ]

    def count(self, _module, args, kwargs):
        self.rows += (args[0] if args else kwargs["hidden_states"]).shape[0]

    def close(self):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("max_removed", [0, 1, 3])
def test_counted_applications_equal_the_formula(max_removed):
    items = [many_scored_positions()]
    module = families.tiny_model("llama")
    engine = ready_engine(DecoderModel(module), layout="trie")
    coalitions = [c for c in WINDOWS if len(c) <= max_removed]
    calls = Calls(module, items)
    engine.score(items, coalitions)
    calls.close()
    assert calls.rows == engine.counted_applications == windows_formula(N, max_removed)


def many_scored_positions():
    """Make an item with over 16 scored positions: chunks of fewer are padded with copies, which a hook would count."""
    choices = tuple(EncodedChoice((*range(3, 20), *range(20 + 6 * c, 26 + 6 * c)), 6) for c in range(4))
    return EncodedItem("counted", "0", choices, 0, "0")


def test_a_tree_that_promises_less_than_is_computed_is_caught(monkeypatch):
    engine = ready_engine(DecoderModel(families.tiny_model("llama")), layout="trie")
    tree = prefix_tree(WINDOWS, N)
    monkeypatch.setattr(type(tree), "applications", 1)
    with pytest.raises(EngineError, match="1"):
        engine.score(routes.random_items(1), WINDOWS)


def test_a_sublayer_that_all_coalitions_remove_is_not_fetched():
    fetched = []

    class Store:
        def sweep(self, visits):
            for visit in visits:
                fetched.append(visit)
                yield visit

    model = DecoderModel(families.tiny_model("llama"), store=Store())
    engine = ready_engine(model, layout="trie")
    fetched.clear()
    engine.score(routes.random_items(1), [(2,), (2, 5), (0, 2)])
    assert [visit.kinds for visit in fetched] == [{"attn", "ffn"}, {"ffn"}, {"attn", "ffn"}]


def test_items_longer_than_the_verified_length_get_plain_rows():
    items = routes.random_items(3, context=(5, 6)) + routes.random_items(2, seed=1, context=(30, 40))
    engine = ready_engine(DecoderModel(families.tiny_model("llama")))
    expected = engine.score(items, WINDOWS)
    engine.verdict = replace(engine.verdict, verified_tokens=12)
    per_item = [sum(row.targets[0].item == i for row in engine._rows(items)) for i in range(5)]
    assert per_item == [1, 1, 1, len(items[3].choices), len(items[4].choices)]
    assert largest_gap(engine.score(items, WINDOWS), expected) < 1e-5


def test_a_sliding_window_that_tries_got_wrong_would_be_seen(monkeypatch):
    blind = batches.within_window
    monkeypatch.setattr(batches, "within_window", lambda depths, window: blind(depths, None))
    verdict = Engine(DecoderModel(families.tiny_model("mistral"))).examine()
    assert verdict.verified_tokens == 0
    assert not verdict.takes_tries


def test_post_norm_opt_is_taken_and_its_norms_stay():
    module = families.tiny_model("opt", do_layer_norm_before=False)
    engine = ready_engine(DecoderModel(module))
    sublayers = [part for layer in module.model.decoder.layers for part in (layer.self_attn, layer.fc2)]
    items, coalitions = routes.random_items(3), WINDOWS + SCATTERED + [tuple(range(6))]
    expected = routes.hooked_loglikelihoods(module, sublayers, items, coalitions)
    assert largest_gap(engine.score(items, coalitions), expected) < 1e-5
    assert engine.layout == "trie"
    assert "norm of the residual stream stays" in engine.describe()["self_test"]["reason"]


@pytest.mark.parametrize("bend", [torch.tanh, lambda x: x + 0.1])
def test_a_layer_that_bends_or_shifts_the_residual_stream_is_refused(bend):
    module = families.tiny_model("llama")
    module.model.layers[1].register_forward_hook(lambda _m, _i, output: bend(output))
    with pytest.raises(RemovalError, match=r"with its sublayers removed .* and not by a norm alone") as caught:
        Engine(DecoderModel(module)).examine()
    assert "no single meaning" in str(caught.value.hint)


def test_a_model_that_does_something_between_its_layers_is_refused():
    module = families.tiny_model("llama")
    inner = module.model.layers[1]
    inner.register_forward_pre_hook(lambda m, args: (args[0].tanh(), *args[1:]))
    with pytest.raises(RemovalError):
        Engine(DecoderModel(module)).examine()


def test_a_model_with_several_residual_streams_is_refused_with_that_reason():
    module = families.tiny_model("llama")
    module.model.layers[0].register_forward_pre_hook(lambda _m, args: (args[0].expand(4, *args[0].shape), *args[1:]))
    first = module.model.layers[0]
    first.forward = lambda hidden, *args, **kwargs: hidden
    with pytest.raises(RemovalError, match=r"given states of shape .*: it has 4 residual streams"):
        Engine(DecoderModel(module)).examine()


def test_a_layer_that_scales_the_residual_stream_is_taken_with_its_scale():
    module = families.tiny_model("llama")
    weights = torch.linspace(0.5, 1.5, 32)
    module.model.layers[1].register_forward_hook(lambda _m, _i, output: output * weights)
    items = routes.random_items(3)
    expected = routes.hooked_loglikelihoods(module, sublayers_by_name(module), items, WINDOWS + SCATTERED)
    assert largest_gap(ready_engine(DecoderModel(module)).score(items, WINDOWS + SCATTERED), expected) < 1e-5


def test_a_window_that_counts_rows_inside_attention_makes_rows_plain():
    config = transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=16, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    module = transformers.GPTNeoForCausalLM(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.mul_(4.0)
    items = routes.random_items(3, context=(20, 30))
    engine = ready_engine(DecoderModel(module))
    assert engine.layout == "rows"
    expected = routes.hooked_loglikelihoods(module, sublayers_by_name(module), items, [(), (0,), (1, 2)])
    assert largest_gap(engine.score(items, [(), (0,), (1, 2)]), expected) < 1e-5


@pytest.mark.parametrize(("family", "players"), [
    ("mamba", "mixer.0 mixer.1 mixer.2"),
    ("jamba", "mixer.0 ffn.0 attn.1 moe.1 mixer.2 ffn.2"),
    ("lfm2", "mixer.0 ffn.0 attn.1 ffn.1 mixer.2 ffn.2"),
    ("granitemoehybrid", "mixer.0 moe.0 attn.1 moe.1 mixer.2 moe.2"),
    ("jetmoe", "attn.0 moe.0 attn.1 moe.1 attn.2 moe.2"),
    ("dbrx", "attn.0 moe.0 attn.1 moe.1 attn.2 moe.2"),
])  # fmt: skip
def test_mixers_and_odd_answers_are_players_like_the_others(family, players):
    module = families.tiny_model(family)
    engine = ready_engine(DecoderModel(module))
    assert " ".join(player.name for player in engine.model.players) == players
    modules = []
    for player in engine.model.players:
        layer = engine.model.anatomy.layers[player.layer]
        modules.append([layer.layer.get_submodule(name) for name in layer.children_of(player.kind)])
    items = routes.random_items(3)
    coalitions = [(), (0,), (1,), (2,), (0, 2), tuple(range(len(modules)))]
    expected = routes.hooked_loglikelihoods(module, modules, items, coalitions)
    assert largest_gap(engine.score(items, coalitions), expected) < 1e-5
    if "mixer" in players:
        assert engine.layout == "rows"


def test_what_is_not_finite_is_handed_on_as_such():
    items = routes.random_items(2)
    module = families.tiny_model("llama")
    token = (set(items[0].choices[0].tokens[:-1]) - set(items[1].choices[0].tokens)).pop()
    module.model.embed_tokens.weight[token] = float("inf")
    broken, sound = ready_engine(DecoderModel(module), layout="trie").score(items, [(), (3,)])
    assert not np.isfinite(broken[:, 0]).any()
    assert np.isfinite(sound).all()


def test_weights_that_are_not_finite_are_refused():
    module = families.tiny_model("llama")
    module.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(RemovalError):
        Engine(DecoderModel(module)).examine()


@pytest.mark.parametrize("family", ["llama", "phi", "mixtral"])
def test_reported_work_adds_up_to_what_was_planned(family):
    items = routes.random_items(3)
    engine = ready_engine(DecoderModel(families.tiny_model(family)))
    done = []
    engine.score(items, WINDOWS, done.append)
    assert sum(done) == engine.work(items, WINDOWS)
