"""Fill a model without weights from a GGUF file, whose blocks stay as they are.

llama.cpp stores a few things differently from transformers: the rows of the query and key projections of llama-like
models are interleaved for its rotary embedding (undone by moving whole rows, which keeps blocks intact), and Gemma's
norms carry their "+ 1". A mixture's gate and up projections are two stacks in the file and one in the model. Names are
translated by the `gguf` package. Source: llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from lowmem_layers.errors import CheckpointError, ModelError
from lowmem_layers.model.checkpoint.gguf_file import AGAIN, GgufHeader, GgufTensor, read_gguf_header
from lowmem_layers.model.checkpoint.packing import Packing
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_tensor
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import DENSE, GGUF, OwnPacking, Packed, stack, unpacked
from lowmem_layers.model.formats.gguf_blocks import BLOCKS, PLAIN
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.store import Place

PERMUTED = ("llama",)
OFFSET_NORMS = ("gemma2", "gemma3", "nemotron")
ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "starcoder2", "nemotron", "stablelm", "qwen2moe", "qwen3moe",
)  # fmt: skip

_EXPERTS = re.compile(r".*\.(?P<layer>\d+)\.mlp\.experts\.(?P<stack>gate_up_proj|down_proj)")
_STACKS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}


def own_gguf_packing(header: GgufHeader) -> OwnPacking | None:
    """Name the block format that most of the decoder layers' numbers are in; None for a file of plain floats.

    Raises:
        CheckpointError: a tensor is in a block format that is not read here.
    """
    unknown = [t for t in header.tensors.values() if t.quant_type not in BLOCKS | PLAIN]
    if unknown:
        raise CheckpointError(
            f"{header.file.name}: {unknown[0].name} is in blocks of type {unknown[0].quant_type}",
            f"these block formats are read: {', '.join(BLOCKS)}",
        )
    numbers: Counter[str] = Counter()
    for name, tensor in header.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) > 1:
            numbers[tensor.quant_type] += tensor.n_bytes
    if not numbers or numbers.most_common(1)[0][0] in PLAIN:
        return None
    main = numbers.most_common(1)[0][0]
    others = len(numbers) - 1
    return OwnPacking(GGUF, BLOCKS[main].bits, f"GGUF {main}" + (" and others" if others else ""))


def check_architecture(header: GgufHeader) -> None:
    """Refuse a file whose tensors may be laid out in a way that is not undone here.

    Raises:
        ModelError: its architecture's layout is not known.
    """
    if header.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{header.file.name} is a GGUF of architecture {header.architecture!r}, whose layout is not known here",
            f"use its safetensors; known are {', '.join(ARCHITECTURES)}",
        )


def complete_config(config: Any, header: GgufHeader) -> None:
    """Put into the config what transformers leaves at its defaults on reading a GGUF file.

    The widths of a mixture's experts; that Qwen3's router normalises the weights of the chosen experts, which
    llama.cpp's graph does and the file does not say; and the share of a head that is rotated.
    """
    about = {key.removeprefix(f"{header.architecture}."): value for key, value in header.metadata.items()}
    widths = {
        "moe_intermediate_size": "expert_feed_forward_length",
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    }
    for name, key in widths.items():
        if key in about and hasattr(config, name):
            setattr(config, name, int(about[key]))
    if header.architecture == "qwen3moe":
        config.norm_topk_prob = True
    rotary = getattr(config, "rope_parameters", None) or {}
    if "partial_rotary_factor" in rotary and about.get("rope.dimension_count"):
        head = config.hidden_size // config.num_attention_heads
        rotary["partial_rotary_factor"] = int(about["rope.dimension_count"]) / head


class GgufReader:
    """Read one GGUF file."""

    def __init__(
        self, file: Path, model: Any, layer_of: Callable[[str], int], places: Iterable[Place], packing: Packing,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._header = read_gguf_header(file)
        check_architecture(self._header)
        self._model, self._packing, self._dtype = model, packing, dtype
        self._config = model.config.get_text_config(decoder=True)
        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self._header.architecture)
        self._names = get_tensor_name_map(arch, self._config.num_hidden_layers)
        self._places = {place.key: place for place in places}
        self._targets: dict[int, list[str]] = defaultdict(list)  # the model's names by decoder layer
        for name in model.state_dict():
            self._targets[layer_of(name)].append(name)

    def bytes_at_home(self) -> dict[str, int]:
        """Count what each weight takes as the file packs it, by the model's names, from the header alone."""
        return {
            name: sum(
                GGUF.home_bytes(tensor.quant_type, tensor.shape, self._dtype)
                for tensor in self._sources(name).values()
                if tensor is not None
            )
            for name in self._places
        }

    def read_resident(self) -> None:
        """Fill embedding, final norm and head, and tie what the model ties."""
        tied = set(getattr(self._model, "all_tied_weights_keys", None) or {})
        for name in self._targets[-1]:
            if name not in tied or self._sources(name)[name] is not None:
                set_tensor(self._model, name, self._read_dense(name))
        self._model.tie_weights()

    def read_layer(self, layer: int) -> dict[str, Packed]:
        """Fill one decoder layer's small tensors and return its streamed weights, packed, by key."""
        packed: dict[str, Packed] = {}
        for name in self._targets[layer]:
            place = self._places.get(name)
            if place is None:
                set_tensor(self._model, name, self._read_dense(name))
                continue
            weight = self._read(name, place.shape)
            if not self._packing.keep or weight.format == DENSE:
                weight = self._packing.pack(unpacked(weight, self._dtype), is_quantised=is_quantised(place))
            packed[name] = weight
        return packed

    def _sources(self, name: str) -> dict[str, GgufTensor | None]:
        """Find the file's tensors that make up one of the model's, by the names that messages use.

        A stack of experts is one stack or two in the file; any other tensor is one, None where the file lacks it.
        """
        experts = _EXPERTS.fullmatch(name)
        if experts is not None:
            stacks = [f"blk.{experts['layer']}.{part}.weight" for part in _STACKS[experts["stack"]]]
            return {stack: self._header.tensors.get(stack) for stack in stacks}
        stem, _, suffix = name.rpartition(".")
        return {name: self._header.tensors.get(f"{self._names.get_name(stem)}.{suffix}")}

    def _read_dense(self, name: str) -> torch.Tensor:
        """Read a tensor that stays in the model, in the dtype that it has there."""
        parameter = self._model.get_parameter(name)
        weight = self._read(name, tuple(parameter.shape))
        if self._header.architecture in OFFSET_NORMS and name.endswith("norm.weight"):
            return (unpacked(weight, torch.float32) - 1.0).to(parameter.dtype)
        return unpacked(weight, parameter.dtype)

    def _read(self, name: str, expected: tuple[int, ...]) -> Packed:
        """Read what the file has for one of the model's tensors, in the model's row order."""
        sources = list(self._sources(name).items())
        if len(sources) == 1:
            return self._load(sources[0][1], sources[0][0], expected)
        # stacks of experts that lie beside each other in the file, and below each other in the model
        experts, height, columns = expected[0], expected[1] // len(sources), expected[2]
        stacks = [self._load(tensor, part, (experts, height, columns)) for part, tensor in sources]
        starts = range(0, experts * height, height)
        return stack([[each.format.rows(each, start, start + height) for each in stacks] for start in starts], expected)

    def _load(self, tensor: GgufTensor | None, name: str, expected: tuple[int, ...]) -> Packed:
        """Read one tensor of the file, in the model's row order.

        Raises:
            CheckpointError: it is missing, of another shape, or not finite.
        """
        # 1) the bytes
        file = self._header.file
        if tensor is None:
            raise CheckpointError(f"{file.name} lacks the tensor for {name}", AGAIN)
        if tensor.shape not in (expected, tuple(size for size in expected if size != 1)):
            raise CheckpointError(f"{file.name}: {tensor.name} has shape {tensor.shape}, expected {expected}", AGAIN)
        entry = TensorEntry(tensor.name, file, torch.uint8, (tensor.n_bytes,), tensor.start, tensor.n_bytes)
        rows = read_tensor(entry).view(*expected[:-1], -1)  # (..., rows, bytes of a row)
        # 2) llama.cpp interleaves the two halves of each head's rows in query and key projections: undone here
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(tensor.name.split(".")[-2])
        if heads is not None and self._header.architecture in PERMUTED:
            n_heads = getattr(self._config, heads)
            pairs = rows.view(n_heads, rows.shape[0] // n_heads // 2, 2, -1)  # (heads, rows / 2, half, bytes)
            rows = pairs.transpose(1, 2).reshape(rows.shape)
        # 3) blocks or plain numbers, all finite
        weight = GGUF.pack(rows, tensor.quant_type, expected)
        if not GGUF.is_finite(weight):
            raise CheckpointError(f"{file.name}: {tensor.name} holds NaN or infinite numbers", AGAIN)
        return weight
