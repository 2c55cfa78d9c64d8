"""How fast this engine is on this machine with a model of a given shape: one of its decoder layers, timed for real.

The bare matrix products that `machine` times are a ceiling. Normalisations, attention and copies cost the more the
narrower a model is (a third again on a CPU and a model of 135 M parameters), so a single decoder layer with random
weights, of the model's own class and widths, is swept here by the engine itself.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lowmem_layers.engine import ready_engine
from lowmem_layers.engine.budget import sizes_for
from lowmem_layers.forecast.machine import wait_and_read_clock
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.anatomy.dissection import dissect, text_config
from lowmem_layers.model.anatomy.forward import float32_product
from lowmem_layers.model.checkpoint.skeleton import build_skeleton, layers_prefix, quiet_transformers, set_tensor
from lowmem_layers.model.formats import FOUR_BIT, TARGETS, unpack
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

_LARGEST_LAYER_BYTES = 1 << 30  # a larger one is as fast as its bare products, which are all there is to it
_VOCABULARY = 512
_HEAD_COLUMNS = 1 << 15  # a wider head is timed by a part of it
_UNPACKED = (2048, 1024)


@dataclass(frozen=True)
class Speed:
    """Measured speeds.

    Units: multiply-adds a second, in decoder layers and in the head with its log-softmax; numbers unpacked a second.
    """

    layer_macs_s: float
    head_macs_s: float
    unpacked_s: float


def measure_speed(
    config: Any, target: str, device: torch.device, dtype: torch.dtype, n_tokens: int, *, seconds: float = 1.0
) -> Speed | None:
    """Time one decoder layer of a model on rows of `n_tokens`, its head, and the unpacking of its weights.

    Return None where a layer is too large to be timed; its bare products predict it better.
    """
    text = config.get_text_config(decoder=True)
    module = single_layer(config, dtype)
    if module is None:
        return None
    # 1) the layer, without what comes before the first and behind the last one of a real model
    engine = ready_engine(DecoderModel(module.to(device)), layout="rows")
    n_states = max(2, 2 * engine.sizes.chunk_tokens // n_tokens)
    items = [scored_everywhere(n_tokens, number) for number in range(max(1, n_states // 4))]
    coalitions = [(), (0,), (1,), (0, 1)] if len(engine.model.players) == 2 else [(), (0,)]
    engine.time_layers(items, coalitions, time.perf_counter)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        work, took = engine.time_layers(items, coalitions, lambda: wait_and_read_clock(device))
        rates.append(work / took)
    layer_macs_s = sorted(rates)[len(rates) // 2]
    # 2) the head's product, and the log-softmax behind it
    sizes = sizes_for(device, text.vocab_size)
    columns = min(text.vocab_size, _HEAD_COLUMNS)
    states = torch.randn(sizes.head_rows, text.hidden_size, dtype=dtype, device=device)  # (R, D)
    weight = torch.randn(columns, text.hidden_size, dtype=dtype, device=device)  # (V', D)

    def head() -> None:
        wide = states.dtype.itemsize == 2
        logits = float32_product(states, weight, None) if wide else torch.nn.functional.linear(states, weight)
        for block in logits.split(sizes.softmax_rows):
            block.log_softmax(-1, dtype=torch.float32)

    head_macs_s = states.shape[0] * weight.numel() / _seconds(head, device, seconds)
    # 3) unpacking
    unpacked_s = _UNPACKED[0] * _UNPACKED[1] / _seconds(_unpacking(target, device, dtype), device, seconds / 2)
    return Speed(layer_macs_s, head_macs_s, unpacked_s)


def single_layer(config: Any, dtype: torch.dtype) -> Any:
    """Build the model with one decoder layer, random weights and a small vocabulary. Return None if it is too large."""
    small = copy.deepcopy(config)
    small.__dict__.pop("quantization_config", None)
    text = small.get_text_config(decoder=True)
    text.vocab_size = _VOCABULARY
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    with quiet_transformers():
        # cut from the whole model without weights: a config of one layer is not one that every family takes
        module = build_skeleton(small, dtype)
    first = dissect(module).layers[0].layer
    layers = module.get_submodule(layers_prefix(module, first))
    del layers[1:]
    text_config(module).num_hidden_layers = 1
    weights = dict(module.named_parameters())
    if sum(weight.numel() * weight.element_size() for weight in weights.values()) > _LARGEST_LAYER_BYTES:
        return None
    for name, weight in weights.items():
        set_tensor(module, name, torch.randn(weight.shape).to(weight.dtype) * weight.shape[-1] ** -0.5)
    module.tie_weights()
    return module


def scored_everywhere(n_tokens: int, number: int) -> EncodedItem:
    """Make an item that is scored at every position; at others the last feed-forward (here the only one) is skipped."""
    tokens = tuple((number + 7 * place) % (_VOCABULARY - 1) for place in range(n_tokens + 1))
    return EncodedItem("speed", str(number), (EncodedChoice(tokens, n_tokens),), 0, str(number))


def _unpacking(target: str, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Make a step that unpacks a weight. A checkpoint's own packing is taken to be as fast as NF4."""
    out = torch.empty(_UNPACKED, dtype=dtype, device=device)
    if target == "none":
        source = torch.zeros_like(out)
        return lambda: out.copy_(source)
    weight = torch.randn(_UNPACKED)
    packed = TARGETS.get(target, FOUR_BIT).pack(weight)
    there = packed.with_parts({name: part.to(device) for name, part in packed.parts.items()})
    return lambda: unpack(there, out)


def _seconds(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Time a step by the median of several, after one to warm up."""
    times: list[float] = []
    step()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = wait_and_read_clock(device)
        step()
        times.append(wait_and_read_clock(device) - start)
    return sorted(times)[len(times) // 2]
