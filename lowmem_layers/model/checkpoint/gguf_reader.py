"""Fill a model without weights from a GGUF file, whose blocks stay as they are.

llama.cpp stores a few things differently from transformers: the rows of some projections stand in another order
(`gguf_layout`), Gemma's norms carry their "+ 1", linear attention's decay is exponentiated. A mixture's gate and up
projections are two stacks in the file, or two tensors an expert in older files, and one stack in the model. A tensor
that has no place in the model is refused. Source: llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.errors import CheckpointError
from lowmem_layers.model.checkpoint.gguf_config import family_of
from lowmem_layers.model.checkpoint.gguf_file import AGAIN, GgufHeader, GgufTensor, read_gguf_header
from lowmem_layers.model.checkpoint.gguf_keys import USE_SAFETENSORS
from lowmem_layers.model.checkpoint.gguf_layout import columns_in_order, in_order, joint_pieces
from lowmem_layers.model.checkpoint.gguf_names import CONV1D, EXPERTS, JOINT, LATENT, GgufNames
from lowmem_layers.model.checkpoint.packing import Packing
from lowmem_layers.model.checkpoint.safetensors_files import TensorEntry, read_tensor
from lowmem_layers.model.checkpoint.skeleton import set_tensor
from lowmem_layers.model.formats import DENSE, GGUF, TURNED, OwnPacking, Packed, stack, unpacked
from lowmem_layers.model.formats.gguf_blocks import BLOCKS, PLAIN
from lowmem_layers.model.homes.places import is_quantised
from lowmem_layers.model.homes.store import Place

# What a file may lack. llama.cpp adds no bias where there is none (transformers has one switch for the four of
# attention), and multiplies by no scale.
_OPTIONAL = {
    "self_attn.o_proj.bias": 0.0,
    "layer_scalar": 1.0,
    "router.per_expert_scale": 1.0,
    "e_score_correction_bias": 0.0,
}
_NOT_READ = {
    "Q8_1": ", which llama.cpp rounds activations to, not weights",
    "Q8_K": ", which llama.cpp rounds activations to, not weights",
    "Q1_0": ", for which the gguf package has no unpacking that ours could be checked against",
}
_PLAIN_NORM = "linear_attn.norm.weight"  # the one norm of Qwen's hybrids that is no "1 + weight"


def own_gguf_packing(header: GgufHeader) -> OwnPacking | None:
    """Name the block format that most of the decoder layers' numbers are in; None for a file of plain floats.

    Raises:
        CheckpointError: a tensor is in a block format that is not read here.
    """
    unknown = [t for t in header.tensors.values() if t.quant_type not in BLOCKS | PLAIN]
    if unknown:
        kind = unknown[0].quant_type
        raise CheckpointError(
            f"{header.file.name}: {unknown[0].name} is in blocks of type {kind}{_NOT_READ.get(kind, '')}",
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
        self._names = GgufNames(self._header, self._family, self._config)
        self._known = {name: (tuple(each.shape), each.dtype) for name, each in model.state_dict().items()}
        self._places = {place.key: place for place in places}
        self._targets: dict[int, list[str]] = defaultdict(list)  # the model's names by decoder layer
        for name in self._known:
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
            if name not in used and not self._names.may_stay_unread(name):
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
        """Find the file's tensors that make up one of the model's, by the names that messages use."""
        return self._names.sources(name, self._known[name][0][0] if EXPERTS.fullmatch(name) else 0)

    def _read_dense(self, name: str) -> torch.Tensor:
        """Read a tensor that stays in the model, in the dtype that it has there."""
        shape, dtype = self._known[name]
        default = next((value for ending, value in _OPTIONAL.items() if name.endswith(ending)), None)
        if default is not None and self._sources(name)[name] is None:
            return torch.full(shape, default, dtype=dtype)
        weight = self._read(name, shape)
        if self._family.offset_norms and name.endswith("norm.weight") and not name.endswith(_PLAIN_NORM):
            return (unpacked(weight, torch.float32) - 1.0).to(dtype)
        if name.endswith(".A_log"):
            decay = unpacked(weight, torch.float32)
            if not bool((decay < 0).all()):
                raise CheckpointError(f"{self._header.file.name}: {name} is the logarithm of no positive number", AGAIN)
            return torch.log(-decay).to(dtype)
        return unpacked(weight, dtype)

    def _read(self, name: str, expected: tuple[int, ...]) -> Packed:
        """Read what the file has for one of the model's tensors, in the model's row order."""
        sources = list(self._sources(name).items())
        if self._family.turned and (found := EXPERTS.fullmatch(name)):
            return self._read_turned(sources, expected, is_bias=found["bias"] is not None)
        if self._family.turned and CONV1D.fullmatch(name):
            return TURNED.pack(self._load(sources[0][1], name, expected[::-1]), 1)
        if len(sources) == 1:
            return self._load(sources[0][1], sources[0][0], expected)
        if JOINT.fullmatch(name):
            cuts = joint_pieces(self._config)
            rows = [max(stop for part, _, stop in cuts if part == each) for each in (0, 1)]
            parts = [self._load(each, part, (n, expected[1])) for (part, each), n in zip(sources, rows, strict=True)]
            return stack([[parts[part].format.rows(parts[part], *cut) for part, *cut in cuts]], expected)
        if LATENT.fullmatch(name):  # each head's keys, turned, and its values
            (key, key_tensor), (value, value_tensor) = sources
            heads, (_, rank) = self._config.num_attention_heads, expected
            widths = self._config.qk_nope_head_dim, self._config.v_head_dim
            keys = self._load(key_tensor, key, (heads, rank, widths[0]))
            values = self._load(value_tensor, value, (heads, widths[1], rank))
            cut = [
                [TURNED.pack(keys.format.rows(keys, head * rank, (head + 1) * rank), 1),
                 values.format.rows(values, head * widths[1], (head + 1) * widths[1])]
                for head in range(heads)
            ]  # fmt: skip
            return stack([[piece for both in cut for piece in both]], expected)
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
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else tensor.name
        rows = in_order(self._family, self._config, kind, rows, expected[0])
        # 3) blocks or plain numbers, all finite
        weight = GGUF.pack(rows, tensor.quant_type, expected)
        if not GGUF.is_finite(weight):
            raise CheckpointError(f"{file.name}: {tensor.name} holds NaN or infinite numbers", AGAIN)
        return columns_in_order(self._family, self._config, kind, weight)
