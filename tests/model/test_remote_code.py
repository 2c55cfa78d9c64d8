"""A folder that brings its own modelling code: refused unasked; exact where it is trusted, in tries and in rows."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from lowmem_layers.engine import ready_engine
from lowmem_layers.errors import ModelError
from lowmem_layers.model import ModelSpec, load_model
from tests.engine.conftest import hooked_loglikelihoods, random_items
from tests.model.conftest import tiny_tokenizer

CONFIGURATION = """
from transformers import PretrainedConfig


class HomegrownConfig(PretrainedConfig):
    model_type = "homegrown"

    def __init__(self, vocab_size=256, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_size=48,
                 max_position_embeddings=128, rope_theta=10000.0, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.ffn_size, self.rope_theta = num_attention_heads, ffn_size, rope_theta
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)
"""
# A small Llama in the manner of models that came before their family was in transformers: layers are plain modules.
MODELLING = """
import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
MASKING

from .configuration_homegrown import HomegrownConfig


class HomegrownNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


class HomegrownAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.theta = config.rope_theta
        self.pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def turned(self, x, positions):
        half = self.width // 2
        speeds = self.theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = (positions[:, None, :, None].float() * speeds).to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    def forward(self, x, mask, positions):
        rows, length, size = x.shape
        parts = self.pack(x).view(rows, length, 3, self.heads, self.width)
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
        q, k, whole = self.turned(q, positions), self.turned(k, positions), mask is None and length > 1
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole)
        return self.out(mixed.transpose(1, 2).reshape(rows, length, size)), None


class HomegrownFeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=False)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class HomegrownBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1, self.norm_2 = HomegrownNorm(config.hidden_size), HomegrownNorm(config.hidden_size)
        self.attention, self.feed_forward = HomegrownAttention(config), HomegrownFeedForward(config)

    def forward(self, x, mask=None, positions=None):
        x = x + self.attention(self.norm_1(x), mask, positions)[0]
        return x + self.feed_forward(self.norm_2(x))


class HomegrownPreTrained(PreTrainedModel):
    config_class = HomegrownConfig
    base_model_prefix = "model"
    _supports_sdpa = True


class HomegrownModel(HomegrownPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(HomegrownBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = HomegrownNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        x = self.embed(input_ids)
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        MASK
        for block in self.blocks:
            x = block(x, mask=mask, positions=position_ids)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x))


class HomegrownForCausalLM(HomegrownPreTrained, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = HomegrownModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        states = self.model(input_ids, attention_mask, position_ids).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(states))
"""
MASKS = {
    "masks": (
        "from inspect import signature\nfrom transformers.masking_utils import create_causal_mask\n"
        "CACHE = next(n for n in ('cache', 'past_key_values') if n in signature(create_causal_mask).parameters)",
        "mask = create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask, "
        "position_ids=position_ids, **{CACHE: None})",
    ),
    "no masks": ("", "mask = None"),  # looks at no mask that it is given: rows cannot branch
}


@pytest.fixture(scope="module", params=list(MASKS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Write a model and its code, as they would be downloaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    place = tmp_path_factory.mktemp("homegrown")
    masking, mask = MASKS[request.param]
    (place / "configuration_homegrown.py").write_text(CONFIGURATION)
    (place / "modeling_homegrown.py").write_text(MODELLING.replace("MASKING", masking).replace("MASK", mask))
    names = {"AutoConfig": "configuration_homegrown.HomegrownConfig",
             "AutoModelForCausalLM": "modeling_homegrown.HomegrownForCausalLM"}  # fmt: skip
    (place / "config.json").write_text(f'{{"model_type": "homegrown", "auto_map": {names}}}'.replace("'", '"'))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(place, trust_remote_code=True)
    made = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32)
    for name, parameter in made.named_parameters():
        if parameter.dim() >= 2 and "embed" not in name:
            parameter.data.mul_(6.0)
    made.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return request.param, place


def test_code_is_not_run_unasked(folder: tuple[str, Path]) -> None:
    with pytest.raises(ModelError, match="comes with its own Python code") as caught:
        load_model(ModelSpec(str(folder[1]), dtype="float32", device="cpu", cache=False))
    assert "--trust-remote-code" in caught.value.hint


@pytest.mark.parametrize("layout", ["auto", "rows"])
def test_coalitions_equal_whole_passes(folder: tuple[str, Path], layout: str) -> None:
    from transformers import AutoModelForCausalLM

    kind, place = folder
    model = load_model(ModelSpec(str(place), dtype="float32", device="cpu", cache=False, trust_remote_code=True))
    assert [player.name for player in model.players] == [f"{kind}.{n}" for n in range(3) for kind in ("attn", "ffn")]
    engine = ready_engine(model, layout=layout)
    assert engine.describe()["layout"] == ("trie" if (kind, layout) == ("masks", "auto") else "rows")
    plain = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True, dtype=torch.float32).eval()
    sublayers = [part for block in plain.model.blocks for part in (block.attention, block.feed_forward)]
    coalitions = [(), *itertools.combinations(range(6), 1), (1, 2), (2, 3, 4)]
    items = random_items(5)
    expected = hooked_loglikelihoods(plain, sublayers, items, coalitions)
    for found, wanted in zip(engine.score(items, coalitions), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)
