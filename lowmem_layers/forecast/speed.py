"""How fast this engine is on this machine with a model of a given shape: one of its decoder layers, timed for real.

The bare matrix products that `machine` times are a ceiling. Normalisations, attention and copies cost the more the
narrower a model is (a third again on a CPU and a model of 135 M parameters), so a single decoder layer with random
weights, of the model's own class and widths, is swept here by the engine itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from lowmem_layers.engine.budget import sizes_for
from lowmem_layers.engine.engine import Engine
from lowmem_layers.game.players.coalitions import Removed
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.formats import FOUR_BIT, TARGETS, unpack
from lowmem_layers.model.shape import single_layer
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

    None where a layer is so large that it is better predicted by its bare products.
    """
    text = config.get_text_config(decoder=True)
    single = single_layer(config, dtype, _VOCABULARY, _LARGEST_LAYER_BYTES)
    if single is None:
        return None
    single.to(device)
    model = DecoderModel(single)
    engine = Engine(model, layout="rows")
    n_states = max(2, 2 * engine.sizes.chunk_tokens // n_tokens)
    items = [_item(n_tokens, number) for number in range(max(1, n_states // 4))]
    layer = _layer_macs_s(engine, items, device, seconds)
    head = _head_macs_s(text, device, dtype, seconds)
    return Speed(layer, head, _unpacked_s(target, device, dtype, seconds / 2))


def _item(n_tokens: int, number: int) -> EncodedItem:
    """Make a row that is scored everywhere: where it is not, the last feed-forward (here the only one) is left out."""
    tokens = tuple((number + 7 * place) % (_VOCABULARY - 1) for place in range(n_tokens + 1))
    return EncodedItem("speed", str(number), (EncodedChoice(tokens, n_tokens),), 0, str(number))


def _layer_macs_s(engine: Engine, items: Sequence[EncodedItem], device: torch.device, seconds: float) -> float:
    """Time the layer, without what comes before the first and behind the last one of a real model."""
    coalitions: list[Removed] = [(), (0,), (1,), (0, 1)]
    engine.time_layers(items, coalitions, time.perf_counter)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        work, took = engine.time_layers(items, coalitions, lambda: _now(device))
        rates.append(work / took)
    return sorted(rates)[len(rates) // 2]


def _head_macs_s(text: Any, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Time the head's product and the log-softmax behind it."""
    sizes = sizes_for(device, text.vocab_size)
    columns = min(text.vocab_size, _HEAD_COLUMNS)
    states = torch.randn(sizes.head_rows, text.hidden_size, dtype=dtype, device=device)
    weight = torch.randn(columns, text.hidden_size, dtype=dtype, device=device)

    def step() -> None:
        logits = torch.nn.functional.linear(states, weight)
        for block in logits.split(sizes.softmax_rows):
            block.log_softmax(-1, dtype=torch.float32)

    return states.shape[0] * prod(weight.shape) / _seconds(step, device, seconds)


def _unpacked_s(target: str, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Time unpacking; packings that checkpoints bring along are taken to be as fast as NF4."""
    out = torch.empty(_UNPACKED, dtype=dtype, device=device)
    if target == "none":
        source = torch.zeros_like(out)
        return out.numel() / _seconds(lambda: out.copy_(source), device, seconds)
    weight = torch.randn(_UNPACKED)
    packed = TARGETS.get(target, FOUR_BIT).pack(weight)
    there = packed.with_parts({name: part.to(device) for name, part in packed.parts.items()})
    return out.numel() / _seconds(lambda: unpack(there, out), device, seconds)


def _seconds(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Time a step by the median of several, after one to warm up."""
    times: list[float] = []
    step()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = _now(device)
        step()
        times.append(_now(device) - start)
    return sorted(times)[len(times) // 2]


def _now(device: torch.device) -> float:
    """Read the clock when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
