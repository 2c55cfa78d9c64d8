"""Pack one matrix as a format's own library does, and say what that library reads from it again: for `formats`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

Parts = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]  # (out, in) -> the parts, and the dense weight


class NotInstalledError(Exception):
    """A library that a case needs is not there."""


@dataclass(frozen=True)
class Case:
    """A way to pack a matrix, the `quantization_config` that goes with it, and what the file's header notes of it."""

    pack: Packer
    config: Mapping[str, Any]
    note: Callable[[torch.Tensor], str] | None = None


def library(name: str) -> Any:
    """Import a library's module."""
    try:
        return import_module(name)
    except ImportError as error:
        raise NotInstalledError(f"{name} cannot be imported: {error}") from error


def compressed(form: str, weights: dict[str, Any], *, activations: bool = False) -> Case:
    """Pack with compressed-tensors' own compressor."""

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        ct, base = library("compressed_tensors.quantization"), library("compressed_tensors.compressors")
        helpers = library("compressed_tensors.quantization.utils.helpers")
        args = ct.QuantizationArgs(**weights)
        scheme = ct.QuantizationScheme(targets=["Linear"], weights=args)
        # 1) the scales, from each block's smallest and largest number
        rows, columns = weight.shape
        if args.strategy == "tensor":
            blocks = weight.reshape(1, 1, -1)
        elif args.strategy == "block":
            high, wide = args.block_structure
            padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high))
            tiles = padded.unflatten(0, (-1, high)).unflatten(2, (-1, wide))
            blocks = tiles.transpose(1, 2).flatten(2)
        else:
            blocks = weight.unflatten(1, (-1, args.group_size or columns))
        factor = helpers.generate_gparam(weight.min(), weight.max()).reshape(1) if form.startswith("nvfp4") else None
        scale, zero = helpers.calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=factor)
        scale = scale.reshape(-1) if args.strategy == "tensor" else scale
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero.to(torch.int8).reshape(scale.shape)}
        state |= {} if factor is None else {"weight_global_scale": factor}
        # 2) packed and unpacked by the library
        compressor = base.BaseCompressor.get_value_from_registry(form)
        parts = dict(compressor.compress(state, scheme))
        return parts, compressor.decompress(dict(parts), scheme)["weight"]

    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights, "format": form}
    if activations:
        group["input_activations"] = {"num_bits": 8, "type": weights["type"], "dynamic": True}
    return Case(pack, {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}})


def awq(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Pack with auto-round's copy of AutoAWQ's layer, asymmetric, in groups of 32."""
    module = library("auto_round.export.export_to_awq.utils")
    blocks = weight.float().unflatten(1, (-1, 32))  # (out, groups, 32)
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half().float()  # (out, groups)
    zeros = (-low / scales).round().clamp(0, 15)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.float()
    packed = module.WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.T, zeros=zeros.T, device="cpu")
    parts = {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales}
    # float16 is AWQ's own arithmetic; here a number is rounded once, to bfloat16
    return parts, module.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).T


def auto_round(name: str) -> Packer:
    """Pack with one of auto-round's layers for GPTQ's layout."""

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        module = library(f"auto_round_extension.torch.{name}")
        blocks = weight.float().unflatten(1, (-1, 32))
        scales = (blocks.abs().amax(-1) / 7).half().float()  # (out, groups)
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.weight.data = weight.float()
        packed = module.QuantLinear(4, 32, weight.shape[1], weight.shape[0], False)
        packed.device = torch.device("cpu")
        packed.pack(linear, scales, torch.full_like(scales, 8.0), None, device="cpu")
        parts = {part: getattr(packed, part) for part in ("qweight", "qzeros", "scales")}
        packed.scales = packed.scales.float()  # float16 is the layer's own; here it is rounded once, to bfloat16
        return parts, packed(torch.eye(weight.shape[1])).T

    return pack


def fp8(block: tuple[int, int] | None, power: str = "float") -> Packer:
    """Pack and unpack with transformers' fine-grained FP8."""

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        module = library("transformers.integrations.finegrained_fp8")
        settings = SimpleNamespace(weight_block_size=block, scale_fmt=power)
        packer = module.Fp8Quantize(SimpleNamespace(quantization_config=settings))
        quantised = packer._quantize_one(".weight", weight)
        codes, scales = quantised[".weight"], quantised[".weight_scale_inv"]
        dense = module.Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
        return {"weight": codes, "weight_scale_inv": scales}, dense

    return pack


def modelopt_nvfp4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Pack and unpack with modelopt's NVFP4 tensor."""
    tensor = library("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor
    packed, scale, factor = tensor.quantize(weight, 16)
    scale = scale.to(torch.float8_e4m3fn)
    dense = packed.dequantize(torch.bfloat16, scale=scale, double_scale=factor, block_sizes={-1: 16})
    return {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": factor.float()}, dense


def modelopt_fp8(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """Pack and unpack with modelopt's FP8 tensor."""
    tensor = library("modelopt.torch.quantization.qtensor.fp8_tensor").FP8QTensor
    packed, scale = tensor.quantize(weight.float())
    dense = packed.dequantize(torch.float32, scale=scale)
    return {"weight": packed._quantized_data, "weight_scale": scale.float(), "input_scale": torch.ones(1)}, dense


def hqq(bits: int, axis: int = 1) -> Packer:
    """Pack and unpack with HQQ, in bfloat16."""

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        module, names = library("hqq.core.quantize"), library("hqq.core.utils")
        codes, meta = module.Quantizer.quantize(
            weight, bits, group_size=64, axis=axis, optimize=False, device="cpu", compute_dtype=torch.bfloat16
        )
        meta |= {"scale": meta["scale"].bfloat16(), "zero": meta["zero"].bfloat16(), "compute_dtype": torch.bfloat16}
        dense = module.Quantizer.dequantize(codes, meta)
        parts = {name: names.encode_safetensor_type(value) for name, value in meta.items()}
        return {"W_q": codes, **parts}, dense

    return pack


def _integers(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, **more}


def _floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, "strategy": strategy, **more}


_GPTQ = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True}

CASES: dict[str, Case] = {
    "awq": Case(awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
    "auto-round-awq": Case(awq, {**_GPTQ, "packing_format": "auto_round:auto_awq"}),
    "auto-round-gptq": Case(auto_round("qlinear_torch_zp"), {**_GPTQ, "packing_format": "auto_round:auto_gptq"}),
    "auto-round": Case(auto_round("qlinear_torch"), {**_GPTQ, "packing_format": "auto_round"}),
    "ct-w4-group": compressed("pack-quantized", _integers(4, "group", group_size=32)),
    "ct-w4-group-asymmetric": compressed("pack-quantized", _integers(4, "group", group_size=32) | {"symmetric": False}),
    "ct-w4-channel": compressed("pack-quantized", _integers(4, "channel")),
    "ct-w8-group": compressed("pack-quantized", _integers(8, "group", group_size=64)),
    "ct-w3-group": compressed("pack-quantized", _integers(3, "group", group_size=64)),
    "ct-w8a8": compressed("int-quantized", _integers(8, "channel"), activations=True),
    "ct-w8a8-asymmetric": compressed("int-quantized", _integers(8, "channel") | {"symmetric": False}, activations=True),
    "ct-fp8-tensor": compressed("float-quantized", _floats(8, "tensor"), activations=True),
    "ct-fp8-channel": compressed("float-quantized", _floats(8, "channel"), activations=True),
    "ct-fp8-block": compressed("float-quantized", _floats(8, "block", block_structure=[128, 128]), activations=True),
    "ct-nvfp4": compressed("nvfp4-pack-quantized", _floats(4, "tensor_group", group_size=16)),
    "ct-mxfp4": compressed("mxfp4-pack-quantized", _floats(4, "group", group_size=32)),
    "fp8-block": Case(fp8((128, 128)), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8-block-powers": Case(fp8((64, 64), "ue8m0"), {"quant_method": "fp8", "weight_block_size": [64, 64]}),
    "fp8-tensor": Case(fp8(None), {"quant_method": "fp8", "activation_scheme": "static"}),
    "modelopt-nvfp4": Case(modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "modelopt-fp8": Case(modelopt_fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}),
} | {
    f"hqq-{bits}-axis-{axis}": Case(
        hqq(bits, axis), {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits}}}
    )
    for axis in (1, 0)
    for bits in (8, 4, 3, 2, 1)
}
