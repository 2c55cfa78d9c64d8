"""From a request to a model whose decoder layers can be visited one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lowmem_layers.model.anatomy.decoder import DecoderModel, longest_input
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect, text_config
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import GgufReader, check_architecture, complete_config, own_gguf_packing
from lowmem_layers.model.checkpoint.packing import OwnPacking, Recipe, choose_recipe, own_packing
from lowmem_layers.model.checkpoint.safetensors_reader import LayerReader, SafetensorsReader
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.checkpoint.source import Source, find_source
from lowmem_layers.model.checkpoint.texts import keep_texts, read_config, read_tokenizer
from lowmem_layers.model.devices import dtype_name, resolve_device, resolve_dtype
from lowmem_layers.model.formats import four_bit
from lowmem_layers.model.homes.cache import cache_path, fingerprint_files
from lowmem_layers.model.homes.filling import Furniture, furnish
from lowmem_layers.model.homes.home import Home, MemoryHome, largest_layer_bytes
from lowmem_layers.model.homes.places import streamed_places
from lowmem_layers.model.homes.staging import StagedFeed, lane_to
from lowmem_layers.model.homes.store import Feed, Place, StreamingStore
from lowmem_layers.model.memory import available_device_bytes, available_host_bytes, resident_bytes
from lowmem_layers.model.placement import HomeName, ModelBytes, Placement, place_with_states
from lowmem_layers.model.shape import ModelShape, shape_from
from lowmem_layers.model.sizes import measure, packed_bytes
from lowmem_layers.model.spec import ModelSpec

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


@dataclass(frozen=True)
class Outline:
    """A model without weights: its modules, taken apart, and what they will take. `prefix` names the list of layers."""

    model: Any
    anatomy: Anatomy
    prefix: str
    places: list[Place]
    sizes: ModelBytes


@dataclass(frozen=True)
class Prospect:
    """What is known of a model before a weight is read. Units: `max_length` in tokens."""

    tokenizer: Any
    max_length: int
    shape: ModelShape
    device: torch.device
    dtype: torch.dtype


def no_room(_prospect: Prospect) -> int:
    """Need no memory besides the model's."""
    return 0


def load_model(spec: ModelSpec, announce: Announce = silent, room: Callable[[Prospect], int] = no_room) -> DecoderModel:
    """Load the model that `spec` asks for, its decoder layers packed and ready to be visited.

    Units: `room` says how many bytes the work will need besides the weights, and may refuse the model; a home is
        chosen that leaves them, before a weight is read.

    Raises:
        ModelError: the model cannot be found or read, or is not a decoder-only language model.
        CheckpointError: its weight files are damaged, incomplete or contradict its config.
        BudgetError: it does not fit the memory that was given.
    """
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        plan = resolve(spec)
        tokenizer = read_tokenizer(plan.source, spec)  # before hours of packing, should there be none
        outline = outline_of(plan)
        model, places, sizes = outline.model, outline.places, outline.sizes
        shape = shape_from(model, outline.anatomy, places, sizes)
        longest = longest_input(text_config(model), tokenizer)
        placement = _place(plan, sizes, room(Prospect(tokenizer, longest, shape, plan.device, plan.dtype)))
        announce(_announcement(plan))
        fingerprint = fingerprint_files(plan.source.weight_files)
        task = _furniture(plan, model, places, len(outline.anatomy.layers), placement.home, fingerprint)
        home = furnish(task, lambda: _reader(plan, model, outline.prefix, places), announce)
        if placement.one_expert:
            announce("a slot for all of a layer's experts does not fit: they are brought in one at a time")
        feed = _feed(home, plan.device)
        store = StreamingStore(places, feed, plan.dtype, plan.device, one_expert=placement.one_expert)
        model.to(plan.device)
        if spec.cache:
            keep_texts(plan.source, plan.config, tokenizer)
    return DecoderModel(model, tokenizer, store, _description(plan, model, store, placement, fingerprint))


def resolve(spec: ModelSpec) -> Plan:
    """Find the files and settle device, dtype and packing, without reading a weight."""
    device = resolve_device(spec.device)
    dtype = resolve_dtype(spec.dtype, device)
    source = find_source(spec)
    if source.gguf is not None:  # looked at before transformers reads it, whose messages name neither file nor tensor
        header = read_gguf_header(source.folder / source.gguf)
        check_architecture(header)
        own = own_gguf_packing(header)
        config = read_config(source, spec)
        complete_config(config, header)
    else:
        config = read_config(source, spec)
        own = own_packing(getattr(config, "quantization_config", None))
    recipe = choose_recipe(spec.quant, own, requantize=spec.requantize)
    return Plan(spec, source, device, dtype, config, own, recipe)


def outline_of(plan: Plan) -> Outline:
    """Take a resolved model apart before it has weights, and count its bytes.

    Raises:
        ModelError: no model can be built from the config.
        CheckpointError: the headers of a checkpoint that keeps its own packing cannot be read.
    """
    model = build_skeleton(plan.config, plan.dtype, trust_remote_code=plan.spec.trust_remote_code)
    anatomy = dissect(model)
    prefix = layers_prefix(model, anatomy.layers[0].layer)
    places = list(streamed_places(anatomy, prefix, plan.dtype))
    return Outline(model, anatomy, prefix, places, model_bytes(plan, model, places, prefix))


def _place(plan: Plan, sizes: ModelBytes, room: int) -> Placement:
    """Choose the home, from shapes and headers alone."""
    spec, on_gpu = plan.spec, plan.device.type == "cuda"
    gpu_limit = spec.max_gpu_memory or (available_device_bytes(plan.device) if on_gpu else None)
    cpu_limit = spec.max_cpu_memory or sizes.process + available_host_bytes()
    return place_with_states(sizes, spec.offload, on_gpu=on_gpu, gpu_limit=gpu_limit, cpu_limit=cpu_limit, room=room)


def model_bytes(plan: Plan, model: Any, places: list[Place], prefix: str) -> ModelBytes:
    """Count what the resolved model takes, part by part.

    From the shapes of its skeleton; where a checkpoint keeps its own packing, from the headers of its files.
    """
    kept = _reader(plan, model, prefix, places).bytes_at_home() if plan.recipe.keep else {}

    def packed(place: Place) -> int:
        return kept.get(place.key) or packed_bytes(place, "none" if kept else plan.recipe.target, plan.dtype)

    if plan.recipe.target == "nf4" or (plan.own is not None and plan.own.method == "bitsandbytes"):
        four_bit.functional()  # its import counts as part of this process
    itemsize = _source_itemsize(plan, model)
    sizes = measure(model, places, packed, dtype=plan.dtype, source_itemsize=itemsize, process=resident_bytes())
    return replace(sizes, layer_source=sizes.layer_packed) if kept else sizes  # nothing is unpacked on the way


def _source_itemsize(plan: Plan, model: Any) -> int:
    """Tell two bytes a number from four by the files' sizes; packed ones are unpacked into the compute dtype."""
    if plan.own is not None:
        return plan.dtype.itemsize
    numbers = sum(value.numel() for value in model.state_dict().values())
    return 4 if sum(path.stat().st_size for path in plan.source.weight_files) > 3 * numbers else 2


def _furniture(
    plan: Plan, model: Any, places: list[Place], n_layers: int, home: HomeName, fingerprint: str
) -> Furniture:
    on_disk = home == "disk"
    is_worth_keeping = on_disk or (plan.recipe.target in ("nf4", "int8") and not plan.recipe.keep)
    path = cache_path(fingerprint, plan.recipe.label, dtype_name(plan.dtype)) if is_worth_keeping else None
    home_device = None if on_disk else torch.device("cpu") if home == "cpu" else plan.device
    about = {"model": plan.source.name, "packing": plan.recipe.label, "dtype": dtype_name(plan.dtype)}
    return Furniture(model, places, n_layers, home_device, path if plan.spec.cache else None, about)


def _feed(home: Home, device: torch.device) -> Feed:
    """Read a home in the computing device's own memory in place, any other through staging buffers."""
    if isinstance(home, MemoryHome) and home.device == device:
        return home
    return StagedFeed(home, lane_to(device, largest_layer_bytes(home.layouts)))


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


def _description(
    plan: Plan, model: Any, store: StreamingStore, placement: Placement, fingerprint: str
) -> dict[str, Any]:
    return {
        "id": plan.source.name,
        "architecture": type(model).__name__,
        "fingerprint": fingerprint,
        "files": [path.name for path in plan.source.weight_files],
        "quantisation": {
            "asked": plan.spec.quant,
            "checkpoint": plan.own.label if plan.own else "none",
            "used": plan.recipe.target,
            "kept": plan.recipe.keep,
        },
        "dtype": dtype_name(plan.dtype),
        "device": plan.device.type,
        "expected_gpu_bytes": placement.gpu_bytes,
        "expected_cpu_bytes": placement.cpu_bytes,
        "expected_loading_bytes": placement.loading_bytes,
        **store.describe(),
    }
