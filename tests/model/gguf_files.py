"""Tiny models written to GGUF files, as llama.cpp's converter writes them, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.gguf_config import gguf_config
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import GgufReader
from lowmem_layers.model.checkpoint.packing import choose_packing
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, set_tensor
from lowmem_layers.model.formats import GGUF, OwnPacking, unpacked
from lowmem_layers.model.homes.places import streamed_places

ARCHITECTURES = {
    "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3", "phi": "phi2",
    "cohere": "command-r", "gpt_oss": "gpt-oss", "qwen3_next": "qwen3next", "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe", "gemma4_text": "gemma4", "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}  # fmt: skip
INTERLEAVED = ("llama", "mixtral", "granite", "smollm3")
QWEN_HYBRIDS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
OFFSET_NORMS = ("gemma", "gemma2", "gemma3_text", "nemotron", *QWEN_HYBRIDS)


def architecture_of(config: Any) -> str:
    """Name a config's architecture as llama.cpp does."""
    return str(ARCHITECTURES.get(config.model_type, config.model_type))


def n_shared_keys(config: Any) -> int:
    """Count the keys that heads share; the first Falcon has one."""
    if config.model_type == "falcon":
        return config.num_kv_heads if config.new_decoder_architecture else 1
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def metadata_of(config: Any) -> dict[str, Any]:
    """List the keys that every converter writes."""
    rms = getattr(config, "rms_norm_eps", None)
    names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps")
    epsilon = next(getattr(config, each) for each in names if hasattr(config, each))
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
    }
    if config.model_type == "gpt2":
        width = config.n_inner or 4 * config.n_embd
        return sizes | {"feed_forward_length": width, "attention.layer_norm_epsilon": float(epsilon)}
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if config.model_type == "gemma4_text":
        config = config.per_layer_config["sliding_attention"]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sizes | {
        "feed_forward_length": getattr(config, "ffn_hidden_size", None) or getattr(config, "intermediate_size", None),
        "attention.head_count_kv": n_shared_keys(config),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": int(head * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        f"attention.layer_norm_{'rms_' if rms else ''}epsilon": float(rms or epsilon),
    }


def write_gguf(
    path: Path, model: Any, quant_type: str = "F32", keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None, *, expert_by_expert: bool = False,
    tensors_a_part: int = 0,
) -> None:  # fmt: skip
    """Write a model as llama.cpp's converter does, with further `keys` of its architecture and further tensors.

    A key that is None is left out.
    """
    config, architecture = model.config, architecture_of(model.config)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_a_part)
    for key, value in (metadata_of(config) | dict(keys or {})).items():
        add_key(writer, key if key.startswith(("tokenizer.", "split.")) else f"{architecture}.{key}", value)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kind = gguf.GGMLQuantizationType[quant_type if is_blocks(name, value) else "F32"]
        for target, array in converted(name, value, config, names, expert_by_expert).items():
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_key(writer: Any, key: str, value: Any) -> None:
    """Write a key in the type that a converter would choose."""
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value)


def converted(name: str, value: torch.Tensor, config: Any, names: Any, expert_by_expert: bool) -> dict[str, np.ndarray]:
    """Name and lay out one of the model's tensors as the file has it."""
    experts = re.fullmatch(r"model\.layers\.(\d+)\.(?:mlp\.)?experts\.(\w+)", name)
    if (other := named_otherwise(name, value, config)) is not None:
        return other
    if name.endswith("sinks"):
        return {f"{names.get_name(name)}.weight": value.numpy()}
    if experts is not None and config.model_type == "gpt_oss":
        return turned(f"blk.{experts[1]}.", experts[2], value)
    if experts is None:
        stem, _, suffix = name.rpartition(".")
        return {f"{names.get_name(stem)}.{suffix}": as_converted(name, value.numpy(), config)}
    parts = {"ffn_down": value}
    if experts[2] == "gate_up_proj":
        parts = dict(zip(("ffn_gate", "ffn_up"), value.chunk(2, dim=1), strict=True))
    block = f"blk.{experts[1]}."
    if not expert_by_expert:
        return {f"{block}{part}_exps.weight": stack.contiguous().numpy() for part, stack in parts.items()}
    return {
        f"{block}{part}.{number}.weight": each.contiguous().numpy()
        for part, stack in parts.items() for number, each in enumerate(stack)
    }  # fmt: skip


def named_otherwise(name: str, value: torch.Tensor, config: Any) -> dict[str, np.ndarray] | None:
    """Lay out what the `gguf` package has no name for, or what is more than one tensor; None for all else."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
    if found is None:
        return None
    block, rest = f"blk.{found[1]}.", found[2]
    if rest == "linear_attn.in_proj_qkvz.weight":  # (keys, queries and keys and values and gates of each, inputs)
        n, key = config.linear_num_key_heads, config.linear_key_head_dim
        both = config.linear_num_value_heads // n * config.linear_value_head_dim
        parts = value.view(n, -1, value.shape[1]).split([key, key, both, both], dim=1)
        flat = [part.reshape(-1, value.shape[1]) for part in parts]
        return {f"{block}attn_qkv.weight": torch.cat(flat[:3]).numpy(), f"{block}attn_gate.weight": flat[3].numpy()}
    if rest == "self_attn.kv_b_proj.weight" and getattr(config, "keys_apart", True):
        heads = value.view(config.num_attention_heads, -1, value.shape[1])  # (heads, key and value, rank)
        keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return {
            f"{block}attn_k_b.weight": keys.transpose(1, 2).contiguous().numpy(),
            f"{block}attn_v_b.weight": values.contiguous().numpy(),
        }
    endings = {
        "linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.in_proj_ba.weight":
        "ssm_ba.weight", "layer_scalar": "layer_output_scale.weight", "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale", "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    }  # fmt: skip
    return {block + endings[rest]: as_converted(name, value.numpy(), config)} if rest in endings else None


def dealt_out(name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """Deal out the heads of Qwen3.5's values: the first of each key, the second of each key, and so on."""
    n, heads = config.linear_num_key_heads, config.linear_num_value_heads
    width = 1 if name.endswith(("_a.weight", "_b.weight", "A_log", "dt_bias")) else config.linear_value_head_dim
    if name.endswith("out_proj.weight"):
        columns = array.reshape(array.shape[0], n, heads // n, width)
        return np.ascontiguousarray(columns.swapaxes(1, 2)).reshape(array.shape)
    before = array.shape[0] - heads * width
    rows = array[before:].reshape(n, heads // n, width, -1).swapaxes(0, 1)
    return np.concatenate([array[:before], rows.reshape(array[before:].shape)])


def turned(block: str, name: str, value: torch.Tensor) -> dict[str, np.ndarray]:
    """Lay out gpt-oss' experts: gate and up apart, outputs before inputs."""
    kind = "bias" if name.endswith("bias") else "weight"
    parts = {"down": value}
    if name.startswith("gate_up"):
        parts = {"gate": value[..., ::2], "up": value[..., 1::2]}
    lay = (lambda each: each) if kind == "bias" else (lambda each: each.transpose(1, 2))
    return {f"{block}ffn_{part}_exps.{kind}": lay(each).contiguous().numpy() for part, each in parts.items()}


def as_converted(name: str, array: np.ndarray, config: Any) -> np.ndarray:
    """Interleave the query and key rows of Llama, add one to some families' norms, drop dimensions of one."""
    if config.model_type == "falcon" and "query_key_value" in name:  # the heads of each key, that key and its value
        groups = array.reshape(n_shared_keys(config), -1, config.head_dim, array.shape[-1])
        queries, keys, values = groups[:, :-2], groups[:, -2], groups[:, -1]
        return np.concatenate([each.reshape(-1, array.shape[-1]) for each in (queries, keys, values)])
    kind = name.split(".")[-2]
    if config.model_type in INTERLEAVED and kind in ("q_proj", "k_proj"):
        n_heads = config.num_attention_heads if kind == "q_proj" else n_shared_keys(config)
        halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, -1)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
    if config.model_type in OFFSET_NORMS and name.endswith("norm.weight") and "linear_attn" not in name:
        return array + np.float32(1)
    if name.endswith("A_log"):
        array = -np.exp(array)
    if config.model_type.startswith("qwen3_5") and "linear_attn." in name and not name.endswith("norm.weight"):
        array = dealt_out(name, array, config)
    if config.model_type == "gpt2" and re.search(r"\.(c_attn|c_proj|c_fc)\.weight", name):
        return np.ascontiguousarray(array.T)
    return array if array.size == 1 else array.squeeze()


def is_blocks(name: str, weight: torch.Tensor) -> bool:
    """Tell what the converter quantises: matrices in the layers, but no routers."""
    is_router = "router" in name or "gate." in name.replace("gate_proj.", "") or name.endswith("bias")
    in_layers = ".layers." in name or ".h." in name
    return in_layers and weight.dim() >= 2 and not is_router and "norm" not in name and "conv1d" not in name


def read_model(path: Path) -> Any:
    """Read a file into a whole model in float32."""
    header = read_gguf_header(path)
    module = build_skeleton(gguf_config(header), torch.float32)
    anatomy = dissect(module)
    prefix = layers_prefix(module, anatomy.layers[0].layer)
    places = list(streamed_places(anatomy, prefix, torch.float32))
    layer_of = Converter(module, prefix, torch.float32).layer_of
    packing = choose_packing("none", OwnPacking(GGUF, 4, "GGUF"), requantize=False)
    reader = GgufReader(path, module, layer_of, places, packing, torch.float32)
    reader.read_resident()
    for layer in range(len(anatomy.layers)):
        for key, packed in reader.read_layer(layer).items():
            set_tensor(module, key, unpacked(packed, torch.float32))
    return module


@torch.no_grad()
def logits(model: Any, n_tokens: int = 48) -> torch.Tensor:
    """Give the logits for tokens 3, 4, and so on."""
    return model(torch.arange(3, 3 + n_tokens).unsqueeze(0), use_cache=False).logits
