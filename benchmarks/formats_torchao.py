"""Pack one matrix as torchao does, with the note that goes into the file's header: for `formats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.formats_writers import Case, Parts, library

Make = Callable[[torch.Tensor], Any]  # (out, in) -> a tensor of one of torchao's classes


def case(make: Make, dense: Callable[[Any], torch.Tensor] = lambda tensor: tensor.dequantize()) -> Case:
    """Pack with a class of torchao's, and take the class apart as `flatten_tensor_state_dict` does."""

    def flat(weight: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor], dict[str, str]]:
        tensor = make(weight)
        flatten = library("torchao.prototype.safetensors.safetensors_support").flatten_tensor_state_dict
        return tensor, *flatten({"m.weight": tensor})

    def pack(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        tensor, parts, _ = flat(weight)
        return {name.removeprefix("m."): part for name, part in parts.items()}, dense(tensor)

    def note(weight: torch.Tensor) -> str:
        return flat(weight)[2]["m.weight"]

    return Case(pack, {"quant_method": "torchao", "quant_type": {"default": {}}}, note)


def configured(name: str, module: str = "torchao.quantization", **options: Any) -> Make:
    """Pack by a config of torchao's, as users do."""

    def make(weight: torch.Tensor) -> Any:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight
        given = {key: value() if callable(value) else value for key, value in options.items()}
        library("torchao.quantization").quantize_(linear, getattr(library(module), name)(**given))
        return linear.weight.data

    return make


def float8(granularity: str) -> Make:
    """Pack by the class itself: the config of dynamic activations asks for a card that multiplies them."""

    def make(weight: torch.Tensor) -> Any:
        ao, workflows = library("torchao.quantization"), library("torchao.quantization.quantize_.workflows")
        shares = getattr(ao, granularity)()
        kwargs = workflows.QuantizeTensorToFloat8Kwargs(granularity=shares)
        return workflows.Float8Tensor.from_hp(weight, granularity=shares, act_quant_kwargs=kwargs)

    return make


def int4(weight: torch.Tensor) -> Any:
    """Pack by the class itself, in groups of 64: the config asks for a library of kernels, mslk.

    The rounding and the order of the codes are that library's `int4_row_quantize_zp` and `pack_int4`.
    """
    blocks = weight.float().unflatten(1, (-1, 64))  # (out, groups, 64)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / 15
    codes = (((blocks - low) / scale).round().clamp(0, 15) - 8).to(torch.int8).flatten(1)
    packed = (codes[:, ::2] & 0xF) | (codes[:, 1::2] << 4)
    scales, zeros = (grid.squeeze(-1).T.contiguous().to(weight.dtype) for grid in (scale, low + 8 * scale))
    tensor = library("torchao.quantization").Int4Tensor
    return tensor(packed, scales, zeros, [1, 64], weight.shape)


def int4_dense(tensor: Any) -> torch.Tensor:
    """Unpack by the class's definition (it has no `dequantize`): scale × code + zero point, rounded once."""
    halves = torch.stack([tensor.qdata << 4, tensor.qdata], dim=-1).flatten(1) >> 4  # with their signs
    scale, zero = (grid.float().T.repeat_interleave(64, dim=1) for grid in (tensor.scale, tensor.zero_point))
    return halves.float() * scale + zero


def _granularity(name: str, *sizes: int) -> Callable[[], Any]:
    return lambda: getattr(library("torchao.quantization"), name)(*sizes)


def _mapping(name: str) -> Callable[[], Any]:
    return lambda: getattr(library("torchao.quantization").MappingType, name)


_MX, _FP4 = "torchao.prototype.mx_formats", "float4_e2m1fn_x2"
_INT3, _INT4 = "int3", "int4"  # by name: torch makes them, and its stubs lack them
_INTX, _A8 = "IntxWeightOnlyConfig", "Int8DynamicActivationIntxWeightConfig"

TORCHAO: dict[str, Case] = {
    "torchao-int4": case(int4, int4_dense),
    "torchao-int8": case(configured("Int8WeightOnlyConfig")),
    "torchao-int8-dynamic": case(configured("Int8DynamicActivationInt8WeightConfig")),
    "torchao-float8": case(configured("Float8WeightOnlyConfig")),
    "torchao-float8-row": case(float8("PerRow")),
    "torchao-float8-tensor": case(float8("PerTensor")),
    "torchao-8da4w": case(
        configured(_A8, weight_dtype=getattr(torch, _INT4), weight_granularity=_granularity("PerGroup", 32))
    ),
    "torchao-8da4w-asymmetric": case(
        configured(
            _A8, weight_dtype=getattr(torch, _INT4), weight_granularity=_granularity("PerGroup", 32),
            weight_mapping_type=_mapping("ASYMMETRIC"),
        )
    ),
    "torchao-int3": case(
        configured(_INTX, weight_dtype=getattr(torch, _INT3), granularity=_granularity("PerGroup", 32))
    ),
    "torchao-int8-axis": case(configured(_INTX, weight_dtype=torch.int8, granularity=_granularity("PerAxis", 0))),
    "torchao-nvfp4": case(configured("NVFP4WeightOnlyConfig", _MX + ".inference_workflow")),
    "torchao-nvfp4-one-scale": case(
        configured("NVFP4WeightOnlyConfig", _MX + ".inference_workflow", use_dynamic_per_tensor_scale=False)
    ),
    "torchao-mxfp8": case(configured("MXDynamicActivationMXWeightConfig", _MX + ".inference_workflow")),
    "torchao-mxfp4": case(
        configured(
            "MXDynamicActivationMXWeightConfig", _MX + ".inference_workflow",
            activation_dtype=getattr(torch, _FP4), weight_dtype=getattr(torch, _FP4),
        )
    ),
}  # fmt: skip
