"""From a request to a model whose decoder layers can be visited one at a time, in three calls in a row.

`inspect_model` looks at configs and headers, `choose_place` decides where the weights live, `fill_model` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lowmem_layers.model.accelerators import check_offload, is_gpu, kind_of, untested_note
from lowmem_layers.model.anatomy.decoder import DecoderModel, longest_input
from lowmem_layers.model.anatomy.dissection import Anatomy, dissect, text_config
from lowmem_layers.model.checkpoint.conversion import Converter
from lowmem_layers.model.checkpoint.gguf_config import family_of, gguf_config
from lowmem_layers.model.checkpoint.gguf_file import read_gguf_header
from lowmem_layers.model.checkpoint.gguf_reader import GgufReader, own_gguf_packing
from lowmem_layers.model.checkpoint.packing import Packing, choose_packing, own_packing, read_quantisation
from lowmem_layers.model.checkpoint.safetensors_reader import LayerReader, SafetensorsReader
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers
from lowmem_layers.model.checkpoint.source import Source, find_source
from lowmem_layers.model.checkpoint.texts import AGAIN, keep_texts, read_config, read_tokenizer, unreadable
from lowmem_layers.model.devices import (
    describe_gpu,
    describe_kernels,
    dtype_name,
    resolve_device,
    resolve_dtype,
    settle_for_models,
)
from lowmem_layers.model.formats import FOUR_BIT, INT8, OwnPacking
from lowmem_layers.model.gpu import cap_allocator, device_overhead_bytes
from lowmem_layers.model.homes.cache import cache_path, fingerprint_files
from lowmem_layers.model.homes.filling import Filling, OnLayer, fill_home, uncounted
from lowmem_layers.model.homes.home import MemoryHome, largest_layer_bytes
from lowmem_layers.model.homes.places import Place, streamed_places
from lowmem_layers.model.homes.staging import StagedFeed, lane_to
from lowmem_layers.model.homes.store import Feed, StreamingStore
from lowmem_layers.model.memory import available_device_bytes, available_host_bytes, resident_bytes
from lowmem_layers.model.placement import MemoryLimits, Placement, limits_now, place_with_states
from lowmem_layers.model.shape import ModelShape, shape_from
from lowmem_layers.model.sizes import measure, packed_bytes
from lowmem_layers.model.spec import ModelSpec

Announce = Callable[[str], None]

_BITSANDBYTES_BYTES = 32 << 20  # what importing it adds to this process: 28 MiB with 0.50 on Linux


def silent(_line: str) -> None:
    """Announce nothing."""


@dataclass(frozen=True)
class Inspection:
    """What is known of a requested model before a weight is read.

    `module` is transformers' own, taken apart in `anatomy`, its weights still to be filled in at their `places`;
    `prefix` names its list of decoder layers. `own` is the packing that the checkpoint comes in, `packing` what is
    done with it.

    Units: `max_length` in tokens.
    """

    request: ModelSpec
    source: Source
    device: torch.device
    dtype: torch.dtype
    config: Any
    own: OwnPacking | None
    packing: Packing
    tokenizer: Any
    max_length: int
    module: Any
    anatomy: Anatomy
    prefix: str
    places: tuple[Place, ...]
    shape: ModelShape

    def open_reader(self) -> LayerReader:
        """Open the checkpoint's weight files.

        Raises:
            CheckpointError: their headers are damaged, incomplete or contradict the config.
        """
        return _open_reader(self.source, self.module, self.prefix, self.places, self.packing, self.own, self.dtype)

    def describe(self) -> dict[str, Any]:
        """Say which model it is and what it was asked to become, for the run's record."""
        own, packing = self.own.label if self.own else "none", self.packing
        return {
            "id": self.source.name,
            "architecture": type(self.module).__name__,
            "files": [path.name for path in self.source.weight_files],
            "quantisation": {
                "asked": self.request.quant, "checkpoint": own, "used": packing.target, "kept": packing.keep,
            },
            "dtype": dtype_name(self.dtype),
            "device": self.device.type,
            **describe_kernels(
                text_config(self.module), has_experts=any(place.n_experts for place in self.places)
            ),
        }  # fmt: skip


def load_model(request: ModelSpec, announce: Announce = silent) -> DecoderModel:
    """Load a model, its decoder layers packed and ready to be visited: look, decide, do.

    Raises:
        ModelError: the model cannot be found or read, or is not a decoder-only language model.
        CheckpointError: its weight files are damaged, incomplete or contradict its config.
        BudgetError: it does not fit the memory that was given.
    """
    inspection = inspect_model(request)
    return fill_model(inspection, choose_place(inspection), announce)


def inspect_model(request: ModelSpec) -> Inspection:
    """Find out everything about a model that its config, its tokenizer and the headers of its files say.

    Raises:
        ModelError: the model cannot be found, or is not a decoder-only language model; or it has no tokenizer.
        CheckpointError: a header cannot be read.
    """
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        # 1) what is asked for: device, precision, files, packing
        device = resolve_device(request.device)
        check_offload(device, request.offload)
        dtype = resolve_dtype(request.dtype, device)
        source = find_source(request)
        if source.gguf is not None:
            header = read_gguf_header(source.folder / source.gguf)
            with unreadable(f"{source.name} has a header that makes no model", AGAIN):
                family_of(header)
                own = own_gguf_packing(header)
                config = gguf_config(header)
        else:
            config = read_config(source, request)
            with unreadable(f"{source.name}: what it says of its quantisation cannot be read", AGAIN):
                own = own_packing(read_quantisation(source.folder, config))
        packing = choose_packing(request.quant, own, requantize=request.requantize)
        tokenizer = read_tokenizer(source, request)  # before hours of packing, should there be none
        # 2) the model without its weights, taken apart
        module = build_skeleton(config, dtype, trust_remote_code=request.trust_remote_code)
        with unreadable(f"{source.name}: its config makes no model that can be taken apart", AGAIN):
            anatomy = dissect(module)
            prefix = layers_prefix(module, anatomy.layers[0].layer)
            places = tuple(streamed_places(anatomy, prefix, dtype))
        # 3) its bytes: from shapes, or from the headers of a checkpoint that keeps its own packing
        kept: dict[str, int] = {}
        if packing.keep:
            kept = _open_reader(source, module, prefix, places, packing, own, dtype).bytes_at_home()
        target = "none" if kept else packing.target
        process = resident_bytes()
        is_to_come = packing.target == "nf4" or (own is not None and own.format in (FOUR_BIT, INT8))
        if is_to_come and "bitsandbytes" not in sys.modules:
            process += _BITSANDBYTES_BYTES
        sizes = measure(
            module, places, lambda place: kept.get(place.key) or packed_bytes(place, target, dtype),
            dtype=dtype, source_itemsize=_source_itemsize(source, module, own, dtype), process=process,
        )  # fmt: skip
        sizes = replace(sizes, layer_source=sizes.layer_packed) if kept else sizes  # nothing is unpacked on the way
        shape = shape_from(module, anatomy, places, sizes)
    longest = longest_input(text_config(module), tokenizer)
    return Inspection(
        request, source, device, dtype, config, own, packing, tokenizer, longest, module, anatomy, prefix, places, shape
    )


def choose_place(inspection: Inspection, room_bytes: int = 0) -> Placement:
    """Choose where a model's weights live, from what is known of it.

    Units: `room_bytes` is what the work will need on the computing device besides the weights.

    Raises:
        BudgetError: no home that was allowed leaves that much.
    """
    sizes = inspection.shape.n_bytes
    return place_with_states(sizes, inspection.request.offload, memory_limits(inspection), room=room_bytes)


def memory_limits(inspection: Inspection) -> MemoryLimits:
    """Say what memory the model and its states may take: what was given, or what is free now."""
    request, on_gpu = inspection.request, is_gpu(inspection.device)
    context = device_overhead_bytes(inspection.device)  # first: what it loads is not free any more
    free_cpu = inspection.shape.n_bytes.process + available_host_bytes()
    return limits_now(
        on_gpu=on_gpu,
        gpu=request.max_gpu_memory,
        cpu=request.max_cpu_memory,
        free_gpu=available_device_bytes(inspection.device) if on_gpu else 0,
        free_cpu=free_cpu if request.free_cpu_memory is None else min(free_cpu, request.free_cpu_memory),
        context=context,
        streams=kind_of(inspection.device).streams,
    )


def fill_model(
    inspection: Inspection, placement: Placement, announce: Announce = silent, on_layer: OnLayer = uncounted
) -> DecoderModel:
    """Read an inspected model's weights into the place that was chosen. An inspection can be filled once.

    `on_layer` is told after each decoder layer how many of how many are read.

    Raises:
        CheckpointError: the weight files are damaged, incomplete or contradict the config.
        DiskFullError: the disk is full, for the cache or for a home on disk.
    """
    found, request, device = inspection, inspection.request, inspection.device
    dtype, packing = dtype_name(inspection.dtype), inspection.packing.label
    announce(f"loading {found.source.name} on {device.type} in {dtype}; decoder layers' weights: {packing}")
    arithmetic, gpu = settle_for_models(device), describe_gpu(device)
    cap_allocator(device, request.max_gpu_memory)
    for line in _remarks(found):
        announce(line)
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        # 1) the packed weights to their home; kept in the cache where packing them again would take long
        fingerprint = fingerprint_files(found.source.weight_files)
        is_costly = placement.home == "disk" or (found.packing.target in ("nf4", "int8") and not found.packing.keep)
        path = cache_path(fingerprint, packing, dtype) if is_costly and request.cache else None
        home_device = None if placement.home == "disk" else torch.device("cpu") if placement.home == "cpu" else device
        about = {"model": found.source.name, "packing": packing, "dtype": dtype}
        task = Filling(found.module, found.places, len(found.anatomy.layers), home_device, path, about)
        home = fill_home(task, found.open_reader, announce, on_layer)
        # 2) from there to the slots: a home in the computing device's own memory is read in place
        if placement.one_expert:
            announce("a slot for all of a layer's experts does not fit: they are brought in one at a time")
        if isinstance(home, MemoryHome) and home.device == device:
            feed: Feed = home
        else:
            feed = StagedFeed(home, lane_to(device, largest_layer_bytes(home.layouts)))
        store = StreamingStore(found.places, feed, found.dtype, device, one_expert=placement.one_expert)
        found.module.to(device)
        if request.cache:
            keep_texts(found.source, found.config, found.tokenizer, announce)
    # 3) what was done, for the run's record
    description = {
        **found.describe(),
        "fingerprint": fingerprint,
        "expected_gpu_bytes": placement.gpu_bytes,
        "expected_cpu_bytes": placement.cpu_bytes,
        "expected_loading_bytes": placement.loading_bytes,
        **store.describe(),
        **({"arithmetic": arithmetic, "gpu": gpu} if gpu else {}),
    }
    believable = None if request.trust_remote_code else path
    return DecoderModel(found.module, found.tokenizer, store, description, found.shape, believable)


def _remarks(found: Inspection) -> list[str]:
    """Say what of the model's files will not be used, as far as their names and the config tell."""
    lines = [note] if (note := untested_note(found.device)) else []
    if found.request.dtype == "auto" and found.dtype == torch.float16:
        lines.append("this GPU has no bfloat16 of its own: computing in float16")
    if unread := [path.name for path in found.source.unread_files]:
        lines.append(f"not read, since the model's weights are in other files: {', '.join(unread)}")
    if found.own is not None and found.own.runs_quantised:
        lines.append(f"{found.own.label}: weights as stored, activations not quantised")
    n_tokens, n_known = 1 + max(found.tokenizer.get_vocab().values(), default=-1), found.shape.vocabulary
    if n_tokens > n_known:
        lines.append(
            f"the tokenizer has {n_tokens} tokens, the model's vocabulary {n_known}: items with others are refused"
        )
    return lines


def _source_itemsize(source: Source, module: Any, own: OwnPacking | None, dtype: torch.dtype) -> int:
    """Tell from its files' sizes whether a checkpoint has two or four bytes a number; packed ones become `dtype`."""
    if own is not None:
        return dtype.itemsize
    numbers = sum(value.numel() for value in module.state_dict().values())
    return 4 if sum(path.stat().st_size for path in source.weight_files) > 3 * numbers else 2


def _open_reader(
    source: Source, module: Any, prefix: str, places: tuple[Place, ...], packing: Packing, own: OwnPacking | None,
    dtype: torch.dtype,
) -> LayerReader:  # fmt: skip
    converter = Converter(module, prefix, dtype)
    if source.gguf is not None:
        return GgufReader(source.folder / source.gguf, module, converter.layer_of, places, packing, dtype)
    return SafetensorsReader(source.folder, module, converter, places, packing, own, dtype)
