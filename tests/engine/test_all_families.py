"""A sample of all the types that the benchmark of families builds, by the benchmark's own route."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.families import in_a_fork
from lowmem_layers.engine.examination import windows

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [
    "qwen3_next", "qwen3_5_moe_text", "falcon_h1", "nemotron_h", "recurrent_gemma", "mamba2", "llama4_text", "gpt_neo",
    "gemma4_text", "mistral_large4", "deepseek_v32", "qwen2_5_vl", "internvl", "mistral3", "llava", "kimi_k25",
    "zamba2", "rwkv", "dots3_note_text",
])  # fmt: skip
def test_coalitions_of_a_type_equal_whole_passes(model_type):
    found = in_a_fork(model_type)
    assert found["verdict"] == "right", found


@pytest.mark.parametrize("model_type", ["longcat_flash", pytest.param("inkling_text", marks=pytest.mark.slow)])
def test_layers_with_two_attentions_and_feed_forwards_that_mix_tokens_are_right(model_type):
    found = in_a_fork(model_type)
    assert found["verdict"] == "right", found
    assert ("mix tokens" if model_type == "inkling_text" else "removed together") in found["reason"]


@pytest.mark.parametrize("model_type", [
    "bert-generation",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("minimax", "openai-gpt", "trocr", "git")),
])  # fmt: skip
def test_a_norm_of_the_residual_stream_stays_where_its_sublayer_goes(model_type):
    found = in_a_fork(model_type)
    assert found["verdict"] == "right", found
    assert "norm of the residual stream stays" in found["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "why"), [
    ("deepseek_v4", "it has 4 residual streams"),
    ("inkling2_text", "decoder layer 3 reads states of earlier layers beside the residual stream"),
    ("zaya", "each decoder layer hands a second result"),
    ("cpmant", "another last token changes the logits before it"),
    ("dory", "one forward pass of text calls its 2 decoder layers 4 times"),
    ("gemma4_unified_assistant", "all its decoder layers read the keys and values of another model"),
])  # fmt: skip
def test_a_type_that_is_refused_hears_the_cause(model_type, why):
    found = in_a_fork(model_type)
    assert found["verdict"] == "refused", found
    assert why in found["reason"]


def test_every_window_that_a_config_names_is_known_but_no_number_of_experts():
    config = SimpleNamespace(
        window_size=256, attention_chunk_size=64, index_topk=8, sliding_window=None, num_experts_per_tok=2,
        moe_topk=2, max_window_layers=3, sliding_window_pattern="LLG", use_sliding_window=True,
    )  # fmt: skip
    assert windows(config) == {"window_size": 256, "attention_chunk_size": 64, "index_topk": 8}
