"""Section `correct`: does the card compute what the CPU computes?

Tiny random models of every family in float32 and float64; every weight format's unpacking; the homes of the weights,
with readers and streams that are slow on purpose. `right` in each result is the verdict; gaps are in nats.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.setting import Case, Frame, Result, Setting, all_windows, frame, random_items, random_model
from lowmem_layers.engine import Engine, ready_engine
from lowmem_layers.engine.reference import reference_loglikelihoods
from lowmem_layers.forecast.ceilings import random_int8, random_nf4
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.model.formats import GGUF, Packed, unpack
from lowmem_layers.model.formats.gguf_blocks import BLOCKS
from lowmem_layers.model.homes.home import DiskHome, Home, MemoryHome, largest_layer_bytes
from lowmem_layers.model.homes.packed_file import PackedFile, write_packed_file
from lowmem_layers.model.homes.staging import CudaLane, HostLane, Lane, StagedFeed
from lowmem_layers.model.homes.store import GroupKey, StreamingStore
from lowmem_layers.model.memory import is_machines_fault

_SHARE = {torch.float64: 1e-7, torch.float32: 5e-5}  # of the largest log-likelihood
# between two devices: also models in float64 take cosines and exponentials in float32, and libraries differ in their
# last bits (one bit of each moves a tiny Mamba's log-likelihoods by 1.5e-6 of the largest)
_ACROSS = {torch.float64: 1e-5, torch.float32: 5e-5}
_FIRST = ("llama", "gemma2", "mixtral", "gpt_oss", "falcon", "bloom")
_COALITIONS = [(), (0,), (1,), (0, 1), (0, 2), (3,), (1, 3)]


def cases(setting: Setting) -> Iterator[Case]:
    """List what is compared, the likeliest faults first."""
    yield "formats", lambda: _formats(setting)
    yield "masked attention", lambda: _attention(setting)
    yield "homes", lambda: _homes(setting)
    yield "one expert at a time", lambda: _one_expert(setting)
    from tests.families import FAMILIES, HYBRIDS

    names = [*_FIRST, *(name for name in (*FAMILIES, *HYBRIDS) if name not in _FIRST)]
    for name in names[:2] if setting.tiny else names:
        for dtype in (torch.float32, torch.float64):
            yield f"{name} {str(dtype)[6:]}", lambda name=name, dtype=dtype: compare_family(setting, name, dtype)


def compare_family(setting: Setting, name: str, dtype: torch.dtype) -> Result:
    """Compare a family's sweep on the device with whole forward passes on the CPU, and with itself in other ways."""
    from tests.engine.conftest import random_items as tiny_items
    from tests.families import tiny_model

    module, items = tiny_model(name, dtype=dtype), tiny_items(3)
    here = DecoderModel(copy.deepcopy(module))
    here.examine()
    coalitions = [each for each in _COALITIONS if max(each, default=0) < len(here.players)]  # Mamba has two players
    truth = reference_loglikelihoods(here, items, coalitions)
    model = DecoderModel(module.to(setting.device))
    engine = ready_engine(model, budget_bytes=1 << 28)
    sweep = engine.score(items, coalitions)
    ways = {
        "sweep to the CPU's own forward": gap(sweep, truth),
        "sweep to the own forward here": gap(sweep, reference_loglikelihoods(model, items, coalitions)),
        "tries to rows": gap(sweep, Engine(model, layout="rows", budget_bytes=1 << 28).score(items, coalitions)),
    }
    size = max(1.0, *(float(np.abs(each).max()) for each in truth))
    limit, across = _SHARE[dtype] * size, _ACROSS[dtype] * size
    alone = [engine.score(items, [coalition]) for coalition in coalitions]
    joined = [np.concatenate([each[i] for each in alone]) for i in range(len(items))]
    again = gap(sweep, engine.score(items, coalitions))
    far = {name for name, each in ways.items() if not each <= (across if "CPU" in name else limit)}
    right = not far and again == 0.0
    return {"right": right, "layout": engine.layout, "limit": limit, **ways, "twice": again,
            "alone to in company": gap(sweep, joined)}  # fmt: skip


def gap(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Find the largest difference. Shapes: per item (coalitions, choices)."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def _formats(setting: Setting) -> Result:
    """Unpack the same random codes here and on the device."""
    generator = torch.Generator().manual_seed(0)
    packed: dict[str, Packed] = {"nf4": random_nf4((96, 256)), "int8": random_int8((96, 256))}
    for name, block in BLOCKS.items():
        codes = torch.randint(0, 256, (96 * 256 // block.numbers, block.n_bytes), generator=generator)
        codes = codes.to(torch.uint8)
        for start in block.scale_starts:  # small and finite
            codes[:, start : start + 2] = torch.rand(len(codes), 1, generator=generator).half().view(torch.uint8)
        packed[name] = GGUF.pack(codes.view(96, -1), name, (96, 256))
    missing = ""
    try:
        from tests.model.test_formats_scaled import EXAMPLES
    except ImportError as error:  # pytest may be missing
        missing = str(error)
    else:
        packed |= {name: example.read() for name, example in EXAMPLES.items()}
    wrong = []
    for name, each in packed.items():
        there = each.with_parts({part: value.to(setting.device) for part, value in each.parts.items()})
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found = torch.empty(each.shape, dtype=dtype, device=setting.device)
            expected = torch.empty(each.shape, dtype=dtype)
            unpack(each, expected)
            try:
                unpack(there, found)
            except (RuntimeError, TypeError) as error:  # an operation that this device does not have for these numbers
                if is_machines_fault(error):
                    raise
                wrong.append(f"{name} in {dtype}: {type(error).__name__}: {error}"[:200])
                continue
            if not torch.equal(found.cpu().nan_to_num(), expected.nan_to_num()):
                wrong.append(f"{name} in {dtype}: by up to {(found.cpu() - expected).abs().max().item():.3g}")
    return {"right": not wrong, "formats": len(packed), "wrong": wrong, "not compared": missing}


def _attention(setting: Setting) -> Result:
    """Compare masked attention with the CPU's in float64, at lengths around the sizes of a kernel's blocks.

    With one, a few and all heads of keys and values, as transformers calls the kernel for each of them.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attend: Any = sdpa_attention_forward
    generator, gaps = torch.Generator().manual_seed(0), dict[str, float]()
    for key_heads, width in ((1, 64), (2, 128), (8, 80), (1, 256)):
        module: Any = SimpleNamespace(num_key_value_groups=8 // key_heads, is_causal=True)
        worst = 0.0
        for length in (1, 2, 7, 31, 32, 33, 34, 63, 64, 65, 66, 97, 127, 128, 129, 193, 257):
            q, k, v = (torch.randn(3, heads, length, width, generator=generator) for heads in (8, key_heads, key_heads))
            hidden = torch.rand(3, 1, length, length, generator=generator) > 0.5
            mask = torch.zeros(hidden.shape).masked_fill_(hidden & ~torch.eye(length, dtype=torch.bool), -1e4)
            given = [each.to(setting.dtype) for each in (q, k, v, mask)]
            expected = attend(module, *(each.double() for each in given))[0]
            found = attend(module, *(each.to(setting.device) for each in given))[0]
            worst = max(worst, (found.cpu().double() - expected).abs().max().item())
        gaps[f"{key_heads} heads of keys, width {width}"] = worst
    limit = 0.05 if setting.dtype.itemsize == 2 else 5e-5  # a mask read in a wrong place is off by about 1
    return {"right": all(each <= limit for each in gaps.values()), "limit": limit, **gaps}


class _SlowHome:
    """A home whose reader takes its time, another one at each call."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._draw = np.random.default_rng(0)

    @property
    def layouts(self) -> Mapping[GroupKey, Any]:
        return self._home.layouts

    def read_into(self, key: GroupKey, buffer: torch.Tensor) -> None:
        time.sleep(float(self._draw.uniform(0, 0.01)))
        self._home.read_into(key, buffer)

    def describe(self) -> dict[str, Any]:
        return self._home.describe()


class _SleepingLane(CudaLane):
    """The lane of a run, on streams that sleep before they copy and before they compute."""

    _CYCLES = 5_000_000

    def send(self, turn: int, n_bytes: int) -> None:
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(self._CYCLES * (1 + turn))
        super().send(turn, n_bytes)

    def receive(self, turn: int) -> torch.Tensor:
        torch.cuda._sleep(self._CYCLES * (2 - turn))
        return super().receive(turn)


def _homes(setting: Setting) -> Result:
    """Score one tile with weights on the device, in RAM and on disk, streamed as fast and as slowly as can be."""
    made = frame(_small(setting), "nf4", setting.dtype)
    model = random_model(setting, "llama-3-8b", "device", made=made)
    coalitions, items = all_windows(model, setting), random_items("arc", 3, model.shape.vocabulary)
    expected = ready_engine(model, layout="trie", budget_bytes=1 << 30).score(items, coalitions)
    there: Any = model.store
    home: MemoryHome = there._feed
    ram, path = MemoryHome(torch.device("cpu")), setting.folder / "homes.packed"
    with write_packed_file(path, {"model": "random"}) as writer:
        for key, layout in home.layouts.items():
            views = layout.views(home._buffers[key])
            group = {name: each.with_parts({k: v.cpu() for k, v in each.parts.items()}) for name, each in views.items()}
            ram.add(key, group)
            writer.add(key, group)
    gaps: Result = {}
    for name, packed in {"ram": ram, "disk": DiskHome(PackedFile(path))}.items():
        for slow in (False, True):
            n_bytes = largest_layer_bytes(packed.layouts)
            lane: Lane = HostLane(n_bytes)
            if setting.is_gpu:
                lane = (_SleepingLane if slow else CudaLane)(n_bytes, setting.device)
            feed = StagedFeed(_SlowHome(packed) if slow else packed, lane)
            stored = StreamingStore(made.places, feed, setting.dtype, setting.device)
            other = DecoderModel(made.module, None, stored, {}, made.shape)
            found = ready_engine(other, layout="trie", budget_bytes=1 << 30).score(items, coalitions)
            gaps[f"{name}, {'slow' if slow else 'fast'}"] = gap(found, expected)
    Path(path).unlink()
    return {"right": not any(gaps.values()), **gaps}


def _small(setting: Setting, name: str = "llama-3-8b") -> Any:
    """Take a shape of eight narrow layers: large enough that copies take longer than starting them."""
    config = setting.config(name, 8)
    if not setting.tiny:
        config.hidden_size, config.intermediate_size, config.vocab_size = 1024, 3584, 8192
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 16, 4, 64
    return config


def _one_expert(setting: Setting) -> Result:
    """Score one tile of a mixture with all experts in the slot and with one at a time."""
    found = []
    for one_expert in (False, True):
        made: Frame = frame(_small(setting, "mixtral-8x7b"), "nf4", setting.dtype)
        torch.manual_seed(0)
        model = random_model(setting, "mixtral-8x7b", "device", made=made, one_expert=one_expert)
        items = random_items("arc", 3, model.shape.vocabulary)
        engine = ready_engine(model, layout="trie", budget_bytes=1 << 30)
        found.append(engine.score(items, all_windows(model, setting)))
    largest = gap(*found)
    return {"right": largest <= (0.05 if setting.dtype.itemsize == 2 else 1e-4), "largest gap": largest}
