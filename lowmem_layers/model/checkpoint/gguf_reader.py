"""Fill a model without weights from a GGUF file, whose blocks stay as they are.

llama.cpp stores a few things differently from transformers: the rows of the query and key projections of llama-like
models are interleaved for its rotary embedding (undone by moving whole rows, which keeps blocks intact), and Gemma's
norms carry their "+ 1". A mixture's gate and up projections are two stacks in the file, or two tensors an expert in
older files, and one stack in the model. Names are translated by the `gguf` package. A tensor that has no place in the
model is refused. Source: llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.gguf_config import family_of
from lowmem_layers.model.checkpoint.gguf_file import AGAIN, GgufHeader, GgufTensor, read_gguf_header
from lowmem_layers.model.checkpoint.gguf_keys import USE_SAFETENSORS
from lowmem_layers.model.checkpoint.gguf_rope import FACTORS
from lowmem_layers.model.checkpoint.packing import Packing
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_tensor
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import DENSE, GGUF, TURNED, OwnPacking, Packed, stack, unpacked
from lowmem_layers.model.formats.gguf_blocks import BLOCKS, PLAIN
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.store import Place

_EXPERTS = re.compile(r".*\.(?P<layer>\d+)\.mlp\.experts\.(?P<stack>gate_up_proj|down_proj)(?P<bias>_bias)?")
_STACKS = {"gate_up_proj": ("ffn_gate", "ffn_up"), "down_proj": ("ffn_down",)}
# llama.cpp adds no bias where the file has none; transformers has one switch for the four of attention
_OPTIONAL = ("self_attn.o_proj.bias",)
# computed by llama.cpp as by transformers, and left out by its converter since 2023
_HARMLESS = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")


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


class GgufReader:
    """Read one GGUF file."""

    def __init__(
        self, file: Path, model: Any, layer_of: Callable[[str], int], places: Iterable[Place], packing: Packing,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self._header = read_gguf_header(file)
        self._family = family_of(self._header)
        self._model, self._packing, self._dtype = model, packing, dtype
        self._config = model.config.get_text_config(decoder=True)
        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == self._header.architecture)
        self._names = get_tensor_name_map(arch, self._config.num_hidden_layers)
        self._places = {place.key: place for place in places}
        self._targets: dict[int, list[str]] = defaultdict(list)  # the model's names by decoder layer
        for name in model.state_dict():
            self._targets[layer_of(name)].append(name)
        self._check_all_used()

    def _check_all_used(self) -> None:
        """Refuse a tensor that no weight of the model is read from.

        Raises:
            CheckpointError: there is one.
        """
        sources = [self._sources(name).values() for names in self._targets.values() for name in names]
        used = {tensor.name for each in sources for tensor in each if tensor is not None}
        for name in self._header.tensors:
            if name not in used and name not in FACTORS and not _HARMLESS.fullmatch(name):
                raise CheckpointError(
                    f"{self._header.file.name}: the model has no place for the tensor {name}", USE_SAFETENSORS
                )

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

    def notes(self) -> list[str]:
        """Say nothing: what is left out of a GGUF file is left out of every one of its kind."""
        return []

    def _sources(self, name: str) -> dict[str, GgufTensor | None]:
        """Find the file's tensors that make up one of the model's, by the names that messages use.

        A stack of experts is one stack or two in the file, or as many tensors an expert; any other tensor is one, None
        where the file lacks it.
        """
        tensors = self._header.tensors
        experts = _EXPERTS.fullmatch(name)
        if experts is None:
            stem, _, suffix = name.rpartition(".")
            source = self._names.get_name(name) if suffix == "sinks" else self._names.get_name(stem)
            return {name: tensors.get(f"{source}.{'weight' if suffix == 'sinks' else suffix}")}
        stems = [f"blk.{experts['layer']}.{part}" for part in _STACKS[experts["stack"]]]
        if f"{stems[0]}.0.weight" in tensors:
            each = [f"{stem}.{expert}.weight" for expert in range(self._n_experts(name)) for stem in stems]
        else:
            each = [f"{stem}_exps.{'bias' if experts['bias'] else 'weight'}" for stem in stems]
        return {source: tensors.get(source) for source in each}

    def _n_experts(self, name: str) -> int:
        return self._model.get_parameter(name).shape[0]

    def _read_dense(self, name: str) -> torch.Tensor:
        """Read a tensor that stays in the model, in the dtype that it has there."""
        parameter = self._model.get_parameter(name)
        if name.endswith(_OPTIONAL) and self._sources(name)[name] is None:
            return torch.zeros(parameter.shape, dtype=parameter.dtype)
        weight = self._read(name, tuple(parameter.shape))
        if self._family.offset_norms and name.endswith("norm.weight"):
            return (unpacked(weight, torch.float32) - 1.0).to(parameter.dtype)
        return unpacked(weight, parameter.dtype)

    def _read(self, name: str, expected: tuple[int, ...]) -> Packed:
        """Read what the file has for one of the model's tensors, in the model's row order."""
        sources = list(self._sources(name).items())
        if self._family.turned and (found := _EXPERTS.fullmatch(name)):
            return self._read_turned(sources, expected, is_bias=found["bias"] is not None)
        if len(sources) == 1:
            return self._load(sources[0][1], sources[0][0], expected)
        experts, columns = expected[0], expected[2]
        if not sources[0][0].endswith("_exps.weight"):  # a tensor or two an expert, the experts one after the other
            n_pieces = len(sources) // experts
            shape = (expected[1] // n_pieces, columns)
            pieces = [self._load(tensor, part, shape) for part, tensor in sources]
            return stack([pieces[at : at + n_pieces] for at in range(0, len(pieces), n_pieces)], expected)
        # stacks of experts that lie beside each other in the file, and below each other in the model
        height = expected[1] // len(sources)
        stacks = [self._load(tensor, part, (experts, height, columns)) for part, tensor in sources]
        starts = range(0, experts * height, height)
        return stack([[each.format.rows(each, start, start + height) for each in stacks] for start in starts], expected)

    def _read_turned(
        self, sources: list[tuple[str, GgufTensor | None]], expected: tuple[int, ...], *, is_bias: bool
    ) -> Packed:
        """Read experts that the model has transposed, gate and up column by column, or their biases."""
        n = len(sources)
        if is_bias:  # (experts, out) each, to (experts, out × pieces)
            shape = (expected[0], expected[1] // n)
            pieces = [unpacked(self._load(tensor, part, shape), torch.float32) for part, tensor in sources]
            return DENSE.pack(torch.stack(pieces, dim=2).view(expected))
        experts, columns, rows = expected
        stacks = [self._load(tensor, part, (experts, rows // n, columns)) for part, tensor in sources]
        if n == 1:
            return TURNED.pack(stacks[0], 1)
        height = rows // n
        starts = range(0, experts * height, height)
        pieces = [[each.format.rows(each, start, start + height) for each in stacks] for start in starts]
        return TURNED.pack(stack(pieces, (experts, rows, columns)), n)

    def _load(self, tensor: GgufTensor | None, name: str, expected: tuple[int, ...]) -> Packed:
        """Read one tensor of the file, in the model's row order.

        Raises:
            CheckpointError: it is missing, of another shape, or not finite.
        """
        # 1) the bytes
        file = self._header.file if tensor is None else tensor.file
        if tensor is None:
            raise CheckpointError(f"{file.name} lacks the tensor for {name}", AGAIN)
        if tensor.shape not in (expected, tuple(size for size in expected if size != 1)):
            raise CheckpointError(f"{file.name}: {tensor.name} has shape {tensor.shape}, expected {expected}", AGAIN)
        entry = TensorEntry(tensor.name, tensor.file, torch.uint8, (tensor.n_bytes,), tensor.start, tensor.n_bytes)
        rows = read_tensor(entry).view(*expected[:-1], -1)  # (..., rows, bytes of a row)
        # 2) in the model's order
        rows = self._in_order(tensor.name.split(".")[-2], rows, expected[0])
        # 3) blocks or plain numbers, all finite
        weight = GGUF.pack(rows, tensor.quant_type, expected)
        if not GGUF.is_finite(weight):
            raise CheckpointError(f"{file.name}: {tensor.name} holds NaN or infinite numbers", AGAIN)
        return weight

    def _in_order(self, kind: str, rows: torch.Tensor, n_rows: int) -> torch.Tensor:
        """Undo what llama.cpp's converter does to the rows of attention's projections. (A bias has one number a row.)

        It interleaves the two halves of each head's rows of llama-like queries and keys, and sorts Falcon's joint
        projection, which has the heads that share a key beside it, into queries, keys and values.
        """
        config = self._config
        counts = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        if self._family.permuted and kind in counts:
            n_heads = getattr(config, counts[kind])
            pairs = rows.view(n_heads, n_rows // n_heads // 2, 2, -1)  # (heads, rows / 2, half, bytes)
            return pairs.transpose(1, 2).reshape(rows.shape)
        if self._family.model_type == "falcon" and kind == "attn_qkv" and config.new_decoder_architecture:
            heads, groups = config.num_attention_heads, config.num_kv_heads
            by_head = rows.view(heads + 2 * groups, -1)  # (heads, bytes of a head)
            parts = [part.view(groups, -1, by_head.shape[1]) for part in by_head.split([heads, groups, groups])]
            return torch.cat(parts, dim=1).reshape(rows.shape)  # (groups, queries and key and value, bytes)
        return rows
