"""Do we unpack GPTQ checkpoints to the weights that their own package reads from them?

gptqmodel is no dependency of this package, so two environments are needed. In the other one, install gptqmodel's
requirements without torch, then gptqmodel itself with --no-deps --no-build-isolation.

    make SOURCE OUT --bits 4 --group-size 64    there: quantise a folder in bf16, on a few sentences
    reference CHECKPOINT FILE                   there: gptqmodel's own dequantisation of every linear layer
    compare CHECKPOINT FILE                     here: compare every weight with it, tensor by tensor

`compare` counts the weights that are equal to the bit in float16 (in which gptqmodel multiplies), and gives the largest
difference in units of the last place. The last line of its output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lowmem_layers.model.spec import DtypeName

_SENTENCES = (
    "The harbour opens before dawn, and the first boats come in with herring, mackerel and crab for the market.",
    "A good proof says why a thing is true; a bad one only says that it is.",
    "She packed two sweaters, a torch and a map of the northern valleys, and left the key under the stone.",
    "Water expands when it freezes, which is why pipes burst on cold nights and why ice floats on a pond.",
    "The committee met on Tuesday to decide how the money for the new library should be spent.",
    "To make bread you need flour, water, salt and yeast, some patience, and an oven that gets hot enough.",
    "In the second half the visitors pressed harder, but the goalkeeper saved everything they sent at her.",
    "Iron rusts because oxygen and water turn it into an oxide that flakes away and bares fresh metal.",
)


def make(args: argparse.Namespace) -> None:
    """Quantise a model with gptqmodel, on the CPU."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    gptqmodel = import_module("gptqmodel")
    texts = [" ".join(_SENTENCES[(i + j) % len(_SENTENCES)] for j in range(4)) for i in range(16)]
    config = gptqmodel.QuantizeConfig(
        bits=args.bits, group_size=args.group_size, desc_act=args.act_order, sym=not args.asymmetric,
        act_group_aware=args.group_size > 0 and not args.act_order, device="cpu", offload_to_disk=False,
        format="gptq_v2" if args.version_2 else "gptq",
    )  # fmt: skip
    model = gptqmodel.GPTQModel.load(args.source, config)
    model.quantize(texts, batch_size=4)
    model.save(args.out)


def reference(args: argparse.Namespace) -> None:
    """Write the dense weights that gptqmodel reads from a checkpoint. Shapes: (out, in), float16."""
    from safetensors.torch import save_file

    gptqmodel = import_module("gptqmodel")
    model = gptqmodel.GPTQModel.load(
        args.checkpoint, device="cpu", backend=gptqmodel.BACKEND.TORCH, dtype=torch.float16
    )
    layers = {name: module for name, module in model.model.named_modules() if hasattr(module, "qweight")}
    dense = {f"{name}.weight": module.dequantize_weight().T.contiguous().half() for name, module in layers.items()}
    save_file(dense, args.file)
    print(f"{len(dense)} weights")


def compare(args: argparse.Namespace) -> None:
    """Compare every weight that we unpack with gptqmodel's."""
    from safetensors.torch import load_file

    expected = load_file(args.file)
    found = unpacked(args.checkpoint)
    rows = {name: _gap(found[name], expected[name]) for name in expected}
    for name, (equal, gap) in rows.items():
        if equal < 1:
            print(f"{name}: {equal:.4%} equal, largest difference {gap:.2f} roundings", file=sys.stderr)
    config = json.loads((Path(args.checkpoint) / "config.json").read_text())["quantization_config"]
    keys = ("bits", "group_size", "desc_act", "sym", "checkpoint_format")
    about: dict[str, Any] = {key: config.get(key) for key in keys}
    about |= {"weights": len(rows), "equal_to_the_bit": sum(equal == 1 for equal, _ in rows.values())}
    print(json.dumps(about | {"largest_difference_in_roundings": max(gap for _, gap in rows.values())}))


def unpacked(checkpoint: str | Path, dtype: DtypeName = "float16") -> dict[str, torch.Tensor]:
    """Unpack every streamed linear weight of a checkpoint in `dtype`, experts one by one under gptqmodel's names."""
    from lowmem_layers.model import ModelSpec, load_model
    from lowmem_layers.model.homes.store import Visit

    spec = ModelSpec(str(checkpoint), dtype=dtype, device="cpu", offload="cpu", cache=False)
    model = load_model(spec)
    weights: dict[str, torch.Tensor] = {}
    for visit in model.store.sweep(
        [Visit(index, frozenset({"attn", "ffn"})) for index in range(len(model.players) // 2)]
    ):
        for name, value in model.module.named_parameters():
            if f".{visit.layer}." not in name or value.dim() < 2:
                continue
            if value.dim() == 2:
                weights[name] = value.data.clone()
            for index, expert in enumerate(value.data) if value.dim() == 3 else ():
                halves = {"gate_up_proj": ("gate_proj", "up_proj")}.get(name.rpartition(".")[2], ("down_proj",))
                for half, part in zip(halves, expert.chunk(len(halves)), strict=True):
                    weights[f"{name.rpartition('.')[0]}.{index}.{half}.weight"] = part.clone()
    return weights


def _gap(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Give the share of equal numbers and the largest difference in units of the last place in float16."""
    difference = (found.double() - expected.double()).abs()
    unit = torch.maximum(expected.double().abs(), torch.tensor(2.0**-14)).log2().floor().exp2() * 2.0**-10
    return float((difference == 0).double().mean()), float((difference / unit).max())


def main() -> None:
    """Run one of the three commands."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(required=True)
    making = commands.add_parser("make")
    making.add_argument("source")
    making.add_argument("out")
    making.add_argument("--bits", type=int, default=4)
    making.add_argument("--group-size", type=int, default=64)
    for flag in ("--act-order", "--asymmetric", "--version-2"):
        making.add_argument(flag, action="store_true")
    making.set_defaults(run=make)
    for name, run in (("reference", reference), ("compare", compare)):
        command = commands.add_parser(name)
        command.add_argument("checkpoint")
        command.add_argument("file")
        command.set_defaults(run=run)
    args = options.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
