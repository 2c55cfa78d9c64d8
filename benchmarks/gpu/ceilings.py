"""Section `ceilings`: what the card can do at best, at the engine's own shapes. Everything after is held against it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.setting import MODELS, Case, Result, Setting, frame
from lowmem_layers.engine.budget import sizes_for
from lowmem_layers.forecast.ceilings import check_kernels, measure_ceilings
from lowmem_layers.forecast.machine import measure_products
from lowmem_layers.model.devices import describe_gpu


def cases(setting: Setting) -> Iterator[Case]:
    """List what is measured."""
    yield "machine", lambda: _machine(setting)
    yield "kernels", lambda: {"wrong": check_kernels(setting.device, setting.dtype)}
    for name in MODELS:
        yield name, lambda name=name: _of_model(setting, name)


def _machine(setting: Setting) -> Result:
    about: Result = dict(describe_gpu(setting.device))
    if setting.is_gpu:
        about["free_bytes"], about["total_bytes"] = torch.cuda.mem_get_info(setting.device)
    seconds = 0.05 if setting.tiny else 0.5
    about["products_tflops"] = 2 * measure_products(setting.device, setting.dtype, seconds=seconds) / 1e12
    return about


def _of_model(setting: Setting, name: str) -> Result:
    """Time the products of one model's layers at the engine's chunk, and the kernels beside them."""
    made = frame(setting.config(name), "nf4", setting.dtype)
    sizes = sizes_for(setting.device, made.shape.vocabulary)
    rows = 64 if setting.tiny else sizes.chunk_tokens
    matrices = {place.shape for place in made.places if len(place.shape) == 2 and place.layer == 0}
    stacks = {place.shape[1:] for place in made.places if len(place.shape) == 3 and place.layer == 0}
    products = [(rows, inner, columns) for columns, inner in sorted(matrices)]
    products += [(rows // 4, inner, columns) for columns, inner in sorted(stacks)]  # a token visits two experts of 8
    products += [(min(rows, sizes.head_rows), made.shape.hidden, made.shape.vocabulary)]
    seconds = 0.02 if setting.tiny else 0.25
    found = measure_ceilings(setting.device, setting.dtype, setting.folder, seconds=seconds, products=products)
    return {f"{each.what}, {each.unit}": each.value for each in found}
