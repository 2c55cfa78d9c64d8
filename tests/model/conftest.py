"""Tiny random models on disk, so that loading is tested without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # by their codes


@dataclass(frozen=True)
class Header:
    """What a file's header says of a tensor."""

    shape: tuple[int, ...]
    n_bytes: int


SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def tiny_config(family: str, **changes: Any) -> Any:
    """Build the config of a tiny model of a family."""
    import transformers

    sizes = SIZES | changes
    if family == "gpt2":
        return transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=256, n_positions=128)
    if family == "mixtral":
        return transformers.MixtralConfig(**sizes, num_local_experts=4)
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **{"moe_intermediate_size": 48} | sizes, num_experts=4, num_experts_per_tok=2, head_dim=16
        )
    if family == "gpt_oss":
        return transformers.GptOssConfig(
            **sizes, num_local_experts=4, num_experts_per_tok=2, head_dim=16, layer_types=None
        )
    if family == "deepseek_v3":
        return transformers.DeepseekV3Config(
            **sizes | {"num_key_value_heads": 4}, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
            first_k_dense_replace=1, n_group=1, topk_group=1, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=16,
        )  # fmt: skip
    if family == "qwen2_moe":
        return transformers.Qwen2MoeConfig(
            **sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64
        )
    classes = {
        "llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "gemma2": "Gemma2Config",
        "gemma3": "Gemma3TextConfig", "phi3": "Phi3Config", "starcoder2": "Starcoder2Config",
        "nemotron": "NemotronConfig", "stablelm": "StableLmConfig",
    }  # fmt: skip
    return getattr(transformers, classes[family])(**sizes)


def tiny_model(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """Build a tiny model with random weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=dtype).eval()


def tiny_tokenizer() -> Any:
    """Build a tokenizer of one token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def save_model(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
    """Write a tiny model and its tokenizer to a folder, as a user's checkpoint would lie there."""
    model = tiny_model(family, dtype, **changes)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def four_bit_exact(codes: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """Dequantise by the format's definition: the table's entry times the maximum of its block of the flat weight.

    (bitsandbytes 0.50's own function is the same on CUDA, and on CPUs where rows are whole blocks; else it is wrong.)
    """
    from bitsandbytes.functional import dequantize_blockwise

    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    flat = codes.view(torch.uint8).flatten()
    indices = torch.stack([flat >> 4, flat & 15], dim=1).flatten().long()
    return (state.code[indices] * absmax.repeat_interleave(state.blocksize)[: len(indices)]).to(dtype).view(state.shape)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16, in two shards."""
    folder = tmp_path_factory.mktemp("llama")
    model = tiny_model("llama")
    model.save_pretrained(folder, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(folder)
    return folder
