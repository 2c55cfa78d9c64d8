"""What is written for llama.cpp, against llama.cpp itself.

    python -m benchmarks.llama_cpp k-quants LIBGGML_BASE.so
    python -m benchmarks.llama_cpp mixture LLAMA_QUANTIZE MODEL.gguf [--layers 13]

`k-quants` quantises rows of many kinds with this package and with ggml's own library, and counts blocks that differ.
`mixture` gives each sublayer another format, runs llama-quantize with the options that `bits` writes, and compares each
tensor's type and bytes with what `run --change quantise:FORMAT` rounds the sublayer to. Any package that carries
llama.cpp has both, or the library to link llama-quantize's source with.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants

from lowmem_layers.acting.bit_files import tensor_types
from lowmem_layers.game.players.player import players_of
from lowmem_layers.model.change import QUANT_FORMATS
from lowmem_layers.model.formats.k_quants import K_QUANTISERS, quantise_rows
from lowmem_layers.model.formats.quantiser import quantised

_ROWS = 256


def rows_of_many_kinds() -> dict[str, np.ndarray]:
    """Make rows that try the quantisers' branches. Shapes: of each (rows, 1024), float32."""
    draw = np.random.RandomState(0)
    plain = draw.standard_normal((_ROWS, 1024))
    zeros, outliers = plain.copy(), plain.copy()
    zeros[:, :300], zeros[_ROWS // 2 :, 512:520], zeros[3], zeros[6] = 0, 1e-20, 0, -2.0
    outliers[:, ::97] *= 1000
    kinds = {
        "normal": plain * 0.02,
        "heavy tails": draw.standard_t(2, size=plain.shape) * 0.1,
        "positive": np.abs(plain),
        "negative": -np.abs(plain),
        "log-normal": np.exp(plain) * 0.01,
        "zeros": zeros,
        "outliers": outliers,
        "on a grid": np.round(plain * 4) / 40,
        "tiny": plain * 1e-7,
        "huge": plain * 1e4,
        "bfloat16": torch.from_numpy(plain * 0.05).bfloat16().float().numpy(),
    }
    return {name: np.ascontiguousarray(rows, np.float32) for name, rows in kinds.items()}


def compare_k_quants(library: str) -> None:
    """Print, for each format, how many blocks differ from the library's."""
    ggml = ctypes.CDLL(library)
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    for name in K_QUANTISERS:
        differing, n_blocks, n_bytes = 0, 0, int(QUANT_FORMATS[name].bits * 32)
        for rows in rows_of_many_kinds().values():
            ours = quantise_rows(torch.from_numpy(rows), name).numpy()  # (rows, bytes)
            theirs = np.zeros_like(ours)
            kind = GGMLQuantizationType[name.upper()].value
            ggml.ggml_quantize_chunk(kind, rows.ctypes.data, theirs.ctypes.data, 0, *rows.shape, None)
            differing += int((ours != theirs).reshape(-1, n_bytes).any(axis=1).sum())
            n_blocks += ours.size // n_bytes
        print(f"| {name} | {differing} of {n_blocks:,} blocks differ |", flush=True)


def compare_mixture(binary: str, source: str, n_layers: int) -> None:
    """Print, for each format, how many tensors have the type and the bytes that are expected."""
    reader = GGUFReader(source)
    n_all = max(int(tensor.name.split(".")[1]) for tensor in reader.tensors if tensor.name.startswith("blk.")) + 1
    players = players_of(("ffn",) * n_all)
    names = [name for name, row in QUANT_FORMATS.items() if row.runtime == "llama.cpp"]
    formats = [names[place % len(names)] for place in range(len(players))]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "mixture.gguf"
        options = [part for line in tensor_types(players, formats) for part in line.replace('"', "").split(" ")]
        command = [binary, "--allow-requantize", *options, source, str(made), "q8_0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result = {tensor.name: tensor for tensor in GGUFReader(made).tensors}
        counts = {name: [0, 0, 0] for name in names}
        for tensor in reader.tensors:
            parts = tensor.name.split(".")
            if parts[0] != "blk" or "norm" in tensor.name or int(parts[1]) >= n_layers or parts[-1] != "weight":
                continue
            name = formats[2 * int(parts[1]) + parts[2].startswith("ffn")]
            dense = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type))  # (rows, columns)
            into, found = QUANT_FORMATS[name].for_rows(dense.shape[1]), result[tensor.name]
            counts[name][0] += 1
            counts[name][1] += found.tensor_type.name == into.name.upper()
            if counts[name][1] and found.tensor_type.name == into.name.upper():
                ours = quantised(dense, into).parts["blocks"].numpy()
                counts[name][2] += ours.tobytes() == found.data.tobytes()
        for name, (n_tensors, types, same) in counts.items():
            print(f"| {name} | {n_tensors} tensors | {types} of the type | {same} equal byte for byte |", flush=True)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("k-quants", "mixture"))
    parser.add_argument("program", help="ggml's library, or llama-quantize")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--layers", type=int, default=13)
    asked = parser.parse_args()
    if asked.what == "k-quants":
        compare_k_quants(asked.program)
    else:
        compare_mixture(asked.program, asked.model, asked.layers)


if __name__ == "__main__":
    main()
