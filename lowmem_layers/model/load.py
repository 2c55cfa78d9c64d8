"""From a request to a model whose decoder layers can be visited one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.model.anatomy import dissect
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import GgufReader, own_gguf_packing
from lowmem_layers.model.checkpoint.packing import OwnPacking, Recipe, choose_recipe, own_packing
from lowmem_layers.model.checkpoint.reader import LayerReader, SafetensorsReader
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.decoder import DecoderModel
from lowmem_layers.model.devices import dtype_name, resolve_device, resolve_dtype
from lowmem_layers.model.homes import MemoryHome
from lowmem_layers.model.places import streamed_places
from lowmem_layers.model.source import Source, find_source
from lowmem_layers.model.spec import ModelSpec
from lowmem_layers.model.store import Place, StreamingStore
from lowmem_layers.model.texts import read_config, read_tokenizer

Announce = Callable[[str], None]


def silent(_line: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Plan:
    """A request resolved: which files, on which device, in which precision, in which packing."""

    spec: ModelSpec
    source: Source
    device: torch.device
    dtype: torch.dtype
    config: Any
    own: OwnPacking | None
    recipe: Recipe


def load_model(spec: ModelSpec, announce: Announce = silent) -> DecoderModel:
    """Load the model that `spec` asks for, its decoder layers packed and ready to be visited.

    Raises:
        ModelError: the model cannot be found or read, or is not a decoder-only language model.
        CheckpointError: its weight files are damaged, incomplete or contradict its config.
    """
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        plan = resolve(spec)
        announce(_announcement(plan))
        model = build_skeleton(plan.config, plan.dtype, trust_remote_code=spec.trust_remote_code)
        anatomy = dissect(model)
        prefix = layers_prefix(model, anatomy.layers[0].layer)
        places = list(streamed_places(anatomy, prefix))
        reader = _reader(plan, model, prefix, places)
        home = MemoryHome(plan.device)
        reader.read_resident()
        for layer in range(len(anatomy.layers)):
            packed = reader.read_layer(layer)
            for kind in ("attn", "ffn"):
                home.add((layer, kind), {p.key: packed[p.key] for p in places if (p.layer, p.kind) == (layer, kind)})
        store = StreamingStore(places, home, plan.dtype, plan.device)
        model.to(plan.device)
        tokenizer = read_tokenizer(plan.source, spec)
    return DecoderModel(model, tokenizer, store, _description(plan, model, store))


def resolve(spec: ModelSpec) -> Plan:
    """Find the files and settle device, dtype and packing, without reading a weight."""
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.dtype, device)
    source = find_source(spec)
    config = read_config(source, spec)
    if source.gguf is not None:
        own = own_gguf_packing(read_gguf_header(source.folder / source.gguf))
    else:
        own = own_packing(getattr(config, "quantization_config", None))
    recipe = choose_recipe(spec.quant, own, requantize=spec.requantize)
    return Plan(spec, source, device, dtype, config, own, recipe)


def _reader(plan: Plan, model: Any, prefix: str, places: list[Place]) -> LayerReader:
    converter = Converter(model, prefix, plan.dtype)
    source = plan.source
    if source.gguf is not None:
        file = source.folder / source.gguf
        return GgufReader(file, model, converter.layer_of, places, plan.recipe, plan.dtype)
    return SafetensorsReader(source.folder, model, converter, places, plan.recipe, plan.own, plan.dtype)


def _announcement(plan: Plan) -> str:
    where = f"{plan.source.name} on {plan.device.type} in {dtype_name(plan.dtype)}"
    return f"loading {where}; decoder layers' weights: {plan.recipe.label}"


def _description(plan: Plan, model: Any, store: StreamingStore) -> dict[str, Any]:
    return {
        "id": plan.source.name,
        "architecture": type(model).__name__,
        "quantisation": {
            "asked": plan.spec.quant,
            "checkpoint": plan.own.label if plan.own else "none",
            "used": plan.recipe.target,
            "kept": plan.recipe.keep,
        },
        "dtype": dtype_name(plan.dtype),
        "device": plan.device.type,
        "files": [path.name for path in plan.source.weight_files],
        **store.describe(),
    }
