"""From a request to a model whose decoder layers can be visited one at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.model.devices import dtype_name, resolve_device, resolve_dtype
from lowmem_layers.model.formats import Packed, dense, four_bit, int8
from lowmem_layers.model.homes import MemoryHome
from lowmem_layers.model.places import decoder_layers, is_quantised, streamed_places
from lowmem_layers.model.source import Source, find_source
from lowmem_layers.model.spec import ModelSpec
from lowmem_layers.model.store import Place, StreamingStore

Announce = Callable[[str], None]


def silent(_line: str) -> None:
    """Announce nothing."""


def load_model(spec: ModelSpec, announce: Announce = silent) -> DecoderModel:
    """Load the model that `spec` asks for, its decoder layers packed and ready to be visited.

    Raises:
        ModelError: the model cannot be found or read, or is not a decoder-only language model.
    """
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.dtype, device)
    source = find_source(spec)
    announce(f"loading {source.name} for {device.type} in {dtype_name(dtype)}, quantisation {spec.quant}")
    model, tokenizer = _read_whole(source, dtype)
    layers = decoder_layers(model, model.config.num_hidden_layers)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    places = list(streamed_places(layers, prefix))
    home = MemoryHome(device)
    for group, members in groupby(places, key=lambda place: (place.layer, place.kind)):
        home.add(group, {place.key: _packed(place, spec) for place in members})
    store = StreamingStore(places, home, dtype, device)
    model.to(device)
    return DecoderModel(model, tokenizer, store, _description(spec, source, model, dtype, device, store))


def _packed(place: Place, spec: ModelSpec) -> Packed:
    weight = getattr(place.module, place.attribute).data
    if spec.quant == "none" or not is_quantised(place):
        return dense.pack(weight)
    return four_bit.pack(weight) if spec.quant == "4bit" else int8.pack(weight)


def _read_whole(source: Source, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(source.folder, gguf_file=source.gguf, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.name} cannot be read: {error}", "name a decoder-only language model") from error
    for attribute in ("hf_quantizer",):
        if hasattr(model, attribute):
            delattr(model, attribute)
    return model.eval().requires_grad_(False), tokenizer


def _description(
    spec: ModelSpec, source: Source, model: Any, dtype: torch.dtype, device: torch.device, store: StreamingStore
) -> dict[str, Any]:
    return {
        "id": source.name,
        "architecture": type(model).__name__,
        "quantisation": {"asked": spec.quant, "used": {"none": "none", "4bit": "nf4", "8bit": "int8"}[spec.quant]},
        "dtype": dtype_name(dtype),
        "device": device.type,
        "files": [path.name for path in source.weight_files],
        **store.describe(),
    }
