"""A checkpoint's decoder layers, dense and one at a time: what is written again goes through here.

In memory are embedding, final norm and head, and one decoder layer. Packed weights (GGUF, GPTQ, …) are unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from lowmem_layers.errors import ModelError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import text_config
from lowmem_layers.model.checkpoint.safetensors_files import read_table
from lowmem_layers.model.checkpoint.skeleton import Absent, quiet_transformers, set_tensor
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.model.devices import dtype_name
from lowmem_layers.model.formats import unpacked
from lowmem_layers.model.homes.cache import fingerprint_files
from lowmem_layers.model.homes.store import Visit
from lowmem_layers.model.load import Inspection, inspect_model
from lowmem_layers.model.memory import only_new_objects_collected, release_freed_memory
from lowmem_layers.model.spec import DtypeName, ModelSpec


class CheckpointStore:
    """Read each decoder layer from the checkpoint when it is visited, and let it go behind the visit.

    Embedding, final norm and head are read at once.
    """

    def __init__(self, found: Inspection) -> None:
        self._found = found
        with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
            found.open_reader().read_resident()

    def sweep(self, visits: Sequence[Visit]) -> Iterator[Visit]:
        """Yield each visit once its layer's weights are dense in the model's modules."""
        found = self._found
        with quiet_transformers(), torch.inference_mode(False), torch.no_grad(), only_new_objects_collected():
            reader = found.open_reader()
            for visit in visits:
                places = [place for place in found.places if place.layer == visit.layer]
                packed = reader.read_layer(visit.layer)
                for place in places:
                    set_tensor(found.module, place.key, unpacked(packed.pop(place.key), found.dtype))
                yield visit
                for place in places:
                    away = torch.empty(place.shape, dtype=found.dtype, device="meta")
                    set_tensor(found.module, place.key, away)
                release_freed_memory()

    def describe(self) -> dict[str, Any]:
        """Say where the weights are."""
        return {"home": "checkpoint"}


def inspect_dense(request: ModelSpec, fingerprint: str | None, dtype: DtypeName | None = None) -> Inspection:
    """Look at the model of a run as one that is written again: its weights unpacked and not quantised.

    `dtype` None keeps the checkpoint's own number type; one that is quantised takes the run's.

    Raises:
        ModelError: the files are no longer those of the run, or the model is more than a language model.
    """
    source = find_source(request)
    if fingerprint is not None and fingerprint_files(source.weight_files) != fingerprint:
        raise ModelError(
            f"{source.name}: its weight files are not those that the run measured", "run the study again on this model"
        )
    dense = replace(request, quant="none", requantize=True, device="cpu", offload="none", max_cpu_memory=None)
    found = inspect_model(replace(dense, dtype=dtype or request.dtype))
    has_towers = any(isinstance(module, Absent) for module in found.module.modules())
    if has_towers or text_config(found.module) is not found.module.config:
        raise ModelError(
            f"{source.name} is a multimodal model: only its text decoder is read here, so it cannot be written whole",
            "take the checkpoint of its decoder alone",
        )
    if dtype is None and found.own is None and source.gguf is None:
        n_bytes: dict[torch.dtype, int] = {}
        for entry in read_table(source.folder).values():
            n_bytes[entry.dtype] = n_bytes.get(entry.dtype, 0) + entry.n_bytes
        kept = max(n_bytes, key=lambda each: n_bytes[each])
        if kept != found.dtype:
            names: dict[torch.dtype, DtypeName] = {
                torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
            }  # fmt: skip
            found = inspect_model(replace(dense, dtype=names[kept]))
    return found


def dense_model(found: Inspection) -> DecoderModel:
    """Make a model of an inspection whose layers are read anew at every visit."""
    about = {**found.describe(), "written_dtype": dtype_name(found.dtype)}
    return DecoderModel(found.module, found.tokenizer, CheckpointStore(found), about, found.shape)
