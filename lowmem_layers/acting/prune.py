"""From a choice to what is written: a checkpoint in one of the forms, or recipes for other tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lowmem_layers.acting.forms import Form, Layers, Nemotron, Written, Zeroed, kept_layers
from lowmem_layers.acting.reading import dense_model, inspect_dense
from lowmem_layers.acting.recipes import llama_quantize_line, mergekit_yaml
from lowmem_layers.acting.writing import ShardWriter, new_folder
from lowmem_layers.errors import UsageError
from lowmem_layers.findings.run import Run
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.layer_examination import BOTH
from lowmem_layers.model.checkpoint.skeleton import quiet_transformers
from lowmem_layers.model.devices import dtype_name
from lowmem_layers.model.homes.store import Visit
from lowmem_layers.model.load import Inspection
from lowmem_layers.model.spec import DtypeName
from lowmem_layers.study.prepare import model_spec

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Mergekit:
    """Recipes instead of weights: a mergekit file, and the line for llama-quantize."""

    name: str = "mergekit"
    whole_layers: bool = True

    def prepare(self, found: Inspection, model: DecoderModel, removed: Removed) -> Written:
        """Refuse: this form has no weights."""
        raise UsageError("the form mergekit writes no weights")


FORMS: dict[str, Form] = {form.name: form for form in (Zeroed(), Layers(), Nemotron(), Mergekit())}


def inspect_run(run: Run, dtype: DtypeName | None = None) -> Inspection:
    """Look at the model of a run as one that is written again, unpacked.

    Raises:
        ModelError: its files are not those that the run measured.
    """
    return inspect_dense(model_spec(run.manifest.resolved), run.manifest.model.fingerprint, dtype)


def write_pruned(
    found: Inspection, removed: Removed, form: Form, folder: Path, announce: Announce, shard_bytes: int | None = None
) -> tuple[str, ...]:
    """Write a model without these sublayers into a new folder; give what the user must know of it.

    Raises:
        UsageError: the folder is there, or the form cannot say this removal.
        ModelError: this family cannot be written in this form.
    """
    model = dense_model(found)
    if isinstance(form, Mergekit):
        return _write_recipes(found, model, removed, folder)
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        written = form.prepare(found, model, removed)
        with new_folder(folder) as partial:
            announce(f"writing {len(found.anatomy.layers)} decoder layers, read one at a time")
            _write_weights(found, model, written, partial, shard_bytes)
            (partial / "config.json").write_text(json.dumps(written.config, indent=2, sort_keys=True, default=str))
            found.tokenizer.save_pretrained(partial)
            for name in ("generation_config.json", *(path.name for path in found.source.folder.glob("*.py"))):
                if found.source.gguf is None and (found.source.folder / name).is_file():
                    shutil.copyfile(found.source.folder / name, partial / name)
    unpacked = () if found.own is None else (
        f"the checkpoint is quantised ({found.own.label}): the folder holds its weights unpacked, in "
        f"{dtype_name(found.dtype)}",
    )  # fmt: skip
    return (*unpacked, *written.notes)


def _write_weights(
    found: Inspection, model: DecoderModel, written: Written, folder: Path, shard_bytes: int | None
) -> None:
    """Write every tensor under the names that the family's checkpoints have."""
    from transformers.core_model_loading import revert_weight_conversion

    writer = ShardWriter(folder, shard_bytes) if shard_bytes else ShardWriter(folder)
    module, n_layers = model.module, len(found.anatomy.layers)
    # 1) each layer, as it is visited
    for visit in model.store.sweep([Visit(index, BOTH) for index in range(n_layers)]):
        start = f"{found.prefix}.{visit.layer}."
        own = {name: value for name, value in module.state_dict().items() if name.startswith(start)}
        writer.add(revert_weight_conversion(written.module, dict(written.layer(visit.layer, own))))
    # 2) embedding, final norm and head; what the model ties is written once
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    resident = {
        name: value
        for name, value in module.state_dict().items()
        if name not in tied and not name.startswith(f"{found.prefix}.")
    }
    writer.add(revert_weight_conversion(written.module, resident))
    writer.finish()


def _write_recipes(found: Inspection, model: DecoderModel, removed: Removed, folder: Path) -> tuple[str, ...]:
    kept, n_layers = kept_layers(model, removed, "mergekit"), len(found.anatomy.layers)
    name = str(found.source.folder) if found.source.gguf is not None else found.request.model
    line = llama_quantize_line(kept, n_layers, str(found.source.gguf_path or "model.gguf"))
    with new_folder(folder) as partial:
        (partial / "mergekit.yml").write_text(mergekit_yaml(name, kept, dtype_name(found.dtype)))
        (partial / "llama-quantize.txt").write_text(line + "\n")
    return (f"with mergekit: mergekit-yaml {folder / 'mergekit.yml'} OUTPUT", f"with llama.cpp: {line}")
