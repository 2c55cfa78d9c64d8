"""Do we unpack every checkpoint format to the weights that its own library reads from it?

Each case packs the decoder layers' matrices with the format's own library, where that runs on a CPU, writes them into a
folder as the library names them, loads the folder as users do, and compares every matrix with the library's own
dequantisation, to the bit in bfloat16. None of the libraries is a dependency: compressed-tensors, auto-round (whose AWQ
is AutoAWQ's), modelopt, HQQ and torchao are taken from the environment where they are installed, the rest is
transformers' own. GPTQ has a benchmark of its own.

    tiny                     every case on a random Llama
    tiny CASE …              some of them
    real FOLDER CASE …       on a real checkpoint in FOLDER, in plain bfloat16; log-likelihoods of two sentences too

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.formats_torchao import TORCHAO
from benchmarks.formats_writers import CASES, Case, NotInstalledError
from benchmarks.gptq_parity import unpacked

_TEXTS = (
    "The harbour opens before dawn, and the first boats come in with herring, mackerel and crab for the market.",
    "Water expands when it freezes, which is why pipes burst on cold nights and why ice floats on a pond.",
)


def pack(source: Path, out: Path, case: Case) -> dict[str, torch.Tensor]:
    """Write a checkpoint with the matrices of its decoder layers packed; return their dequantisation, by name."""
    tensors = {name: value for file in sorted(source.glob("*.safetensors")) for name, value in load_file(file).items()}
    expected: dict[str, torch.Tensor] = {}
    notes = {"format": "pt"}
    for name in [name for name, value in tensors.items() if ".layers." in name and value.dim() == 2]:
        weight = tensors.pop(name).bfloat16()
        parts, dense = case.pack(weight)
        notes |= {name: case.note(weight)} if case.note else {}
        expected[name] = dense.bfloat16()
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": value.contiguous() for part, value in parts.items()}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", notes)
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": dict(case.config)}))
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            (out / file.name).write_bytes(file.read_bytes())
    return expected


def compare(folder: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Load a packed checkpoint and count the matrices that are equal to the bit."""
    found = unpacked(folder, "bfloat16")
    equal = sum(torch.equal(found[name], weight) for name, weight in expected.items())
    gaps = [float((found[name].float() - weight.float()).abs().max()) for name, weight in expected.items()]
    return {"matrices": len(expected), "equal_to_the_bit": equal, "largest_gap": max(gaps)}


def likelihoods(folder: Path, source: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Compare log-likelihoods in bfloat16: the packed checkpoint in ours, its dequantised weights in transformers."""
    from transformers import AutoModelForCausalLM

    from lowmem_layers.model import ModelSpec, load_model

    model = load_model(ModelSpec(str(folder), dtype="bfloat16", device="cpu", cache=False))
    whole, plain = (AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval() for _ in range(2))
    plain.load_state_dict(dict(expected), strict=False)
    rows = []
    with torch.inference_mode():
        for text in _TEXTS:
            ids = model.tokenizer(text, return_tensors="pt").input_ids
            with model.streaming():
                ours = _nats(model.module(ids).logits, ids)
            rows.append((ours, _nats(plain(ids).logits, ids), _nats(whole(ids).logits, ids)))
    return {
        "log_likelihoods": [row[0] for row in rows],
        "largest_difference_nats": max(abs(ours - theirs) for ours, theirs, _ in rows),
        "before_packing": [row[2] for row in rows],
        "packed_mib": model.describe()["packed_bytes"] / 2**20,
    }


def _nats(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """Add up the log-probabilities of a text's tokens. Shapes: logits (1, T, V), ids (1, T)."""
    steps = torch.log_softmax(logits[0, :-1].double(), dim=-1)  # (T - 1, V)
    return float(steps.gather(1, ids[0, 1:, None]).sum())


def run(source: Path, names: list[str], measure: Callable[[Path, Mapping[str, torch.Tensor]], dict[str, Any]]) -> None:
    """Go through the cases and print a line for each."""
    rows: dict[str, Any] = {}
    cases = CASES | TORCHAO
    for name in names or list(cases):
        with tempfile.TemporaryDirectory() as place:
            try:
                expected = pack(source, Path(place) / "packed", cases[name])
            except NotInstalledError as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
            rows[name] = measure(Path(place) / "packed", expected)
            print(f"{name}: {rows[name]}", file=sys.stderr)
    print(json.dumps({"torch": torch.__version__, "cases": rows}))


def main() -> None:
    """Run one of the two commands."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    commands.add_parser("tiny").add_argument("cases", nargs="*")
    real = commands.add_parser("real")
    real.add_argument("folder", type=Path)
    real.add_argument("cases", nargs="*")
    args = options.parse_args()
    if args.command == "real":
        run(args.folder, args.cases, lambda place, e: compare(place, e) | likelihoods(place, args.folder, e))
        return
    from tests.model.conftest import save_model

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "plain"
        save_model(folder, "llama", hidden_size=256, intermediate_size=384, num_hidden_layers=2)
        run(folder, args.cases, compare)


if __name__ == "__main__":
    main()
