"""What all sections share: the device, random models made straight from a shape, items of the benchmarks' lengths."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowmem_layers.errors import BudgetError
from lowmem_layers.forecast.ceilings import random_int8, random_nf4
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import dissect
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers, set_tensor
from lowmem_layers.model.formats import DENSE, Packed
from lowmem_layers.model.homes.home import MemoryHome, largest_layer_bytes
from lowmem_layers.model.homes.places import Place, is_quantised, streamed_places
from lowmem_layers.model.homes.staging import StagedFeed, lane_to
from lowmem_layers.model.homes.store import Feed, GroupKey, StreamingStore
from lowmem_layers.model.memory import available_host_bytes, release_freed_memory
from lowmem_layers.model.shape import ModelShape, shape_from, shipped_config
from lowmem_layers.model.sizes import measure, packed_bytes
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

MODELS = ("llama-3-8b", "llama-3-70b", "mixtral-8x7b")
# tokens of the context, and of each choice: near the averages of the real items (benchmarks/engine_tokens.py)
LENGTHS = {"boolq": (146, (1, 1)), "piqa": (12, (18, 18)), "arc": (26, (3, 3, 3, 3))}
_TINY = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 512,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip

Result = dict[str, Any]
Case = tuple[str, Callable[[], Result]]


@dataclass
class Setting:
    """Where and how much is measured, and what earlier sections found, by section and case.

    `tiny`: shapes that a CPU computes in a moment, to try the command out. Units: `ends` by the monotonic clock.
    """

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    folder: Path
    ends: float = 0.0
    found: dict[str, dict[str, Result]] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        """Tell whether CUDA computes."""
        return self.device.type == "cuda"

    def left_s(self) -> float:
        """Say how much of the section's time is left. Units: seconds."""
        return self.ends - time.monotonic()

    def config(self, name: str, n_layers: int | None = None) -> Any:
        """Read a shipped shape, or its tiny stand-in of the same family; `n_layers` cuts it."""
        config = shipped_config(name)
        changes = dict(_TINY) if self.tiny else {}
        if n_layers is not None:
            changes["num_hidden_layers"] = min(n_layers, changes.get("num_hidden_layers", n_layers))
        for key, value in changes.items():
            setattr(config, key, value)
        return config


_HOMES: dict[Any, MemoryHome] = {}  # of host memory, kept from section to section


@dataclass(frozen=True)
class Frame:
    """A model without weights. `places` is where they belong."""

    module: Any
    anatomy: Any
    prefix: str
    places: tuple[Place, ...]
    shape: ModelShape


def frame(config: Any, target: str, dtype: torch.dtype) -> Frame:
    """Take a config's model apart and count its bytes, as loading a checkpoint does."""
    with quiet_transformers(), torch.inference_mode(False), torch.no_grad():
        module = build_skeleton(config, dtype)
        anatomy = dissect(module)
        prefix = layers_prefix(module, anatomy.layers[0].layer)
        places = tuple(streamed_places(anatomy, prefix, dtype))
        n_bytes = measure(
            module, places, lambda place: packed_bytes(place, target, dtype), dtype=dtype, source_itemsize=2, process=0
        )
        return Frame(module, anatomy, prefix, places, shape_from(module, anatomy, places, n_bytes))


def random_model(
    setting: Setting, name: str, home: str = "cpu", target: str = "nf4", *, n_layers: int | None = None,
    one_expert: bool = False, made: Frame | None = None,
) -> DecoderModel:  # fmt: skip
    """Build a model of random packed codes, its weights in RAM (`cpu`) or on the computing device (`device`)."""
    made = made or frame(setting.config(name, n_layers), target, setting.dtype)
    with torch.inference_mode(False), torch.no_grad():
        # 1) packed weights at home: one layer's codes, once more for each layer in memory of their own
        key = (name, target, n_layers, setting.tiny)
        weights = _HOMES.get(key) if home == "cpu" else None
        if weights is None:
            if home == "cpu":
                _make_room(made.shape.n_bytes.packed)
            weights = MemoryHome(torch.device("cpu") if home == "cpu" else setting.device)
            _fill(weights, made, target, setting)
            if home == "cpu":
                _HOMES[key] = weights
        # 2) what stays in the model, on the device
        streamed = {place.key for place in made.places}
        torch.manual_seed(0)
        for tensor, value in made.module.state_dict().items():
            if tensor not in streamed:
                set_tensor(made.module, tensor, random_weight(value.shape, value.dtype, setting.device))
        made.module.tie_weights()
        # 3) the slots, and the way there
        is_there = weights.device == setting.device
        feed: Feed = weights if is_there else StagedFeed(weights, lane_to(setting.device, _lane_bytes(weights)))
        store = StreamingStore(made.places, feed, setting.dtype, setting.device, one_expert=one_expert)
        made.module.to(setting.device)
    return DecoderModel(made.module, None, store, {}, made.shape)


def _make_room(n_bytes: int) -> None:
    """Let go of the other models in host memory where there is no room for one more.

    Raises:
        BudgetError: the host has less memory than it takes; the system would end this process.
    """
    if n_bytes > available_host_bytes():
        forget_homes()
        release_freed_memory()
    if n_bytes > (free := available_host_bytes()):
        raise BudgetError(f"{n_bytes / 2**30:.1f} GiB of host memory are needed, {free / 2**30:.1f} are free")


def _lane_bytes(home: MemoryHome) -> int:
    return largest_layer_bytes(home.layouts)


def random_weight(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Make a norm of ones, or rows with a length of about 1."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype, device=device)
    return torch.randn(shape, dtype=dtype, device=device).mul_(shape[-1] ** -0.5)


def _fill(home: MemoryHome, made: Frame, target: str, setting: Setting) -> None:
    groups: dict[GroupKey, list[Place]] = {}
    for place in made.places:
        groups.setdefault((place.layer, place.kind), []).append(place)
    known: dict[Any, dict[str, Packed]] = {}
    for (layer, kind), places in groups.items():
        stem = f"{made.prefix}.{layer}."
        alike = (kind, tuple((place.key.removeprefix(stem), place.shape) for place in places))
        if alike not in known:
            known[alike] = {p.key.removeprefix(stem): _random_packed(p, target, setting) for p in places}
        home.add((layer, kind), {f"{stem}{name}": packed for name, packed in known[alike].items()})


def _random_packed(place: Place, target: str, setting: Setting) -> Packed:
    if target != "none" and is_quantised(place):
        return (random_nf4 if target == "nf4" else random_int8)(place.shape, setting.device)
    return DENSE.pack(random_weight(torch.Size(place.shape), setting.dtype, setting.device))


def forget_homes() -> None:
    """Let go of the weights in host memory."""
    _HOMES.clear()


def random_items(task: str, n_items: int, vocabulary: int, seed: int = 0) -> list[EncodedItem]:
    """Make items as long as a benchmark's on average, of random tokens; lengths vary by a quarter."""
    draw, items = np.random.default_rng(seed), []
    n_context, ends = LENGTHS[task]
    for index in range(n_items):
        length = max(2, round(n_context * draw.uniform(0.75, 1.25)))
        context = tuple(draw.integers(3, vocabulary, length).tolist())
        choices = tuple(EncodedChoice(context + tuple(draw.integers(3, vocabulary, n).tolist()), n) for n in ends)
        items.append(EncodedItem(task, str(index), choices, 0, str(index)))
    return items


def all_windows(model: DecoderModel, setting: Setting) -> list[tuple[int, ...]]:
    """List the coalitions of a default run: the full model and all windows of up to four."""
    return windows(len(model.players), 2 if setting.tiny else 4)
