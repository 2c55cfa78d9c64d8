"""A config with fewer decoder layers, and the proof that each kept layer is built as it was.

Three kinds of entries change with the layers: lists of one entry a layer are cut, lists of layer numbers are counted
anew, and counts of first layers become counts of the kept ones among them. What else a family builds its layers by
(every fourth one, say) is not known here. So the smaller model is built, and each of its layers compared with the one
that it comes from: modules, shapes, and every plain attribute except the layer's own number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lowmem_layers.errors import RemovalError
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, quiet_transformers

_NO_LAYERS = re.compile(r".*(token_id|token_ids|architectures|id2label|words|langs).*")
_LAYER_NUMBERS = re.compile(r"mlp_only_layers|cross_attention_layers|moe_layers|.*(_idxs|_idx_list|layer_indices)")
_FIRST_LAYERS = re.compile(r"first_k_dense_replace|max_window_layers|num_dense_layers|moe_layer_start_index")
_OWN_NUMBER = re.compile(r".*(layer_idx|layer_index|layer_id|layer_number|block_idx|block_index)")
_PLAIN = bool | int | float | str | type(None)


def cut_config(config: Any, kept: Sequence[int]) -> Any:
    """Make the config of a model that has only the decoder layers `kept`, in this order."""
    document: dict[str, Any] = config.to_dict()
    n_layers, place = config.num_hidden_layers, {layer: position for position, layer in enumerate(kept)}
    for key, value in list(document.items()):
        if isinstance(value, list) and _LAYER_NUMBERS.fullmatch(key):
            document[key] = [place[layer] for layer in value if layer in place]
        elif isinstance(value, list | tuple) and len(value) == n_layers and not _NO_LAYERS.fullmatch(key):
            document[key] = [value[layer] for layer in kept]
        elif type(value) is int and _FIRST_LAYERS.fullmatch(key):
            document[key] = sum(layer < value for layer in kept)
    document[getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return type(config).from_dict(document)


def cut_model(module: Any, kept: Sequence[int], dtype: torch.dtype) -> Any:
    """Build the model that has only these decoder layers, its weights on the meta device.

    Raises:
        RemovalError: a layer would no longer be built as it was.
    """
    try:
        config = cut_config(module.config, kept)
        with quiet_transformers():
            smaller = build_skeleton(config, dtype)
        layers = [layer.layer for layer in dissect(smaller).layers]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _refusal(module, f"a config of {len(kept)} layers is refused: {reason}") from error
    old = [layer.layer for layer in dissect(module).layers]
    for position, number in enumerate(kept):
        if unlike := _difference(old[number], layers[position]):
            raise _refusal(module, f"layer {number} would be built differently as layer {position}: {unlike}")
    return smaller


def _difference(old: nn.Module, new: nn.Module) -> str:
    """Say in what two layers are not built alike; nothing where they are."""
    ours, theirs = dict(old.named_modules()), dict(new.named_modules())
    if ours.keys() != theirs.keys():
        return f"it has {', '.join(sorted(ours.keys() ^ theirs.keys())[:3])} or not"
    for path, module in ours.items():
        twin = theirs[path]
        if type(module) is not type(twin):
            return f"{path} is a {type(twin).__name__}"
        shapes = {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
        if shapes != {name: tuple(value.shape) for name, value in twin.named_parameters(recurse=False)}:
            return f"{path} has weights of other shapes"
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and not _OWN_NUMBER.fullmatch(name) and value != getattr(twin, name, None):
                return f"{path}.{name} is {getattr(twin, name, None)!r}, not {value!r}".lstrip(".")
    return ""


def _refusal(module: Any, why: str) -> RemovalError:
    return RemovalError(
        f"{type(module).__name__}: {why}",
        "this family's layers cannot be cut out of its config; --form zeroed silences them in place",
    )
