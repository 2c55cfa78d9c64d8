"""Check every decoder-only type that transformers knows: coalitions by the engine against whole forward passes.

Run `python -m benchmarks.families [TYPE …] [--json FILE]`. Each type is built tiny and random in a process of its own
(a fork), so that a crash or a memory limit ends that type alone. The other route shares no code with the package: hooks
on the outputs of modules that are found by their names here, in transformers' own forward, choice by choice.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import time
import warnings
from collections import Counter
from logging import CRITICAL
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.families_build import LAYERS, VOCABULARY, causal_types, multimodal_types, tiny_model
from lowmem_layers.engine import ready_engine
from lowmem_layers.errors import LowmemLayersError, ModelError
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks.items import EncodedChoice, EncodedItem

MIXING = re.compile(
    r"self_attn|attn|attention|self_attention|self_att|multi_head_attention|linear_attn|"
    r"mamba|conv|short_conv|temporal_block|mixer|mlstm_layer|mlstm|kda|recurrent"
)
FEED_FORWARD = re.compile(r"mlp|mlps|shared_mlp|block_sparse_moe|feed_forward|ffn|moe|mlp_block|channel_block|fc2")
BERT = re.compile(r"(?:.*\.)?layer\.(\d+)\.(attention\.)?output\.dense")  # what is added to the residual stream
TOLERANCE = 1e-5  # nats a scored token, float32
SECONDS, BYTES = 900, 10 << 30


def branches_by_name(module: Any, players: Any) -> list[list[Any]]:
    """List the modules of each player's branch, by their usual names; in layers with one branch, all of them."""
    found: dict[tuple[int, bool], list[Any]] = {}
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module
    if not any(isinstance(part, torch.nn.ModuleList) for part in decoder.modules()):
        decoder = module
    for path, child in decoder.named_modules():
        if of_bert := BERT.fullmatch(path):
            found[int(of_bert[1]), of_bert[2] is not None] = [child]
        parent, _, name = path.rpartition(".")
        found_in = re.search(
            r"(?:layers|h|blocks|block)\.(\d+)(?:\.(?:norm_attn_norm|mamba_decoder|self_attn|mlps))?$", parent
        )
        if not found_in:
            continue
        layer = found_in[1]
        name = parent.rpartition(".")[2] if name.isdigit() else name  # one of several (LongCat)
        if isinstance(child, torch.nn.ModuleList):
            continue
        if MIXING.fullmatch(name) or FEED_FORWARD.fullmatch(name):
            found.setdefault((int(layer), MIXING.fullmatch(name) is not None), []).append(child)
    alone = Counter(player.layer for player in players)
    lists = []
    for player in players:
        key = (player.layer, player.is_attention)
        lists.append(found[key] if alone[player.layer] > 1 or key in found else found[player.layer, True])
    return lists


def zeroed(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Turn a module's output into zeros, or into the residual that it was handed (BLOOM, MPT)."""
    first = output[0] if isinstance(output, tuple | list) else output
    name = type(module).__name__
    blank = torch.zeros_like(first)
    if name in ("BloomAttention", "BloomMLP", "MptMLP"):
        blank = (args[1] if len(args) > 1 else kwargs["residual"]).clone()
    if name == "GPTNeoXJapaneseAttention":  # hands its bias to the layer, which adds it to the output
        return blank, output[1], None
    return type(output)((blank, *output[1:])) if isinstance(output, tuple | list) else blank


@torch.inference_mode()
def whole_passes(module: Any, branches: list[list[Any]], items: list[EncodedItem], coalitions: Any) -> list[Any]:
    """Score by whole forward passes. Shapes: per item (coalitions, choices)."""
    by_coalition = []
    for removed in coalitions:
        handles = [m.register_forward_hook(zeroed, with_kwargs=True) for p in removed for m in branches[p]]
        by_item = []
        for item in items:
            scores = []
            for choice in item.choices:
                logits = module(input_ids=torch.tensor([choice.tokens[:-1]]), use_cache=False).logits[0].double()
                chosen = torch.tensor(choice.tokens[-choice.n_scored :])
                logprobs = logits[-choice.n_scored :].log_softmax(-1)
                scores.append(logprobs.gather(1, chosen[:, None]).sum().item())
            by_item.append(scores)
        by_coalition.append(by_item)
        for handle in handles:
            handle.remove()
    return [np.array([by_item[i] for by_item in by_coalition]) for i in range(len(items))]


def texts() -> list[EncodedItem]:
    """Make items whose choices share a context longer than every window of the tiny models."""
    rng = np.random.default_rng(0)
    items = []
    for index, length in enumerate((7, 19, 34)):
        context = tuple(int(t) for t in rng.integers(3, VOCABULARY - 8, length))
        endings = [tuple(int(t) for t in rng.integers(3, VOCABULARY - 8, n)) for n in (2, 1, 3)]
        choices = tuple(EncodedChoice(context + ending, len(ending)) for ending in endings)
        items.append(EncodedItem("random", str(index), choices, 0, str(index)))
    return items


def judge(model_type: str) -> dict[str, Any]:
    """Say whether the engine is right, wrong or refuses; or how it crashed."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.set_verbosity(CRITICAL)
    start = time.monotonic()
    try:
        module = tiny_model(model_type)
    except ModelError as error:
        is_ours = not error.message.startswith("no causal language model can be built")
        return {"type": model_type, "verdict": "refused" if is_ours else "not built", "reason": error.message}
    except Exception as error:  # noqa: BLE001 (whatever a family's own code raises is a finding)
        return {"type": model_type, "verdict": "not built", "reason": f"{type(error).__name__}: {error}"[:300]}
    row: dict[str, Any] = {"type": model_type, "layers": LAYERS}
    try:
        engine = ready_engine(DecoderModel(module))
        players, items = engine.model.players, texts()
        n = len(players)
        coalitions = [(), *((p,) for p in range(n)), tuple(range(1, 4)), (0, n - 1), (1, 3), tuple(range(n))]
        coalitions = list(dict.fromkeys(c for c in coalitions if all(p < n for p in c)))
        scores = engine.score(items, coalitions)
    except LowmemLayersError as error:
        return {**row, "verdict": "refused", "reason": error.message, "seconds": time.monotonic() - start}
    except Exception as error:  # noqa: BLE001 (whatever a family's own code raises is a finding)
        return {**row, "verdict": "crash", "reason": f"{type(error).__name__}: {error}"[:300]}
    expected = whole_passes(module, branches_by_name(module, players), items, coalitions)
    gaps = [np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(scores, expected, strict=True)]
    effect = max(float(np.abs(e[1:] - e[:1]).max()) for e in expected)
    kinds = dict(Counter(player.kind for player in players))
    right = max(gaps) < TOLERANCE and effect > 1e-2
    return {
        **row, "verdict": "right" if right else "wrong", "layout": engine.layout, "kinds": kinds,
        "gap": float(max(gaps)), "effect": effect, "seconds": time.monotonic() - start,
        "reason": engine.verdict.reason if engine.verdict else "",
    }  # fmt: skip


def _child(connection: Any, model_type: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    connection.send(judge(model_type))


def in_a_fork(model_type: str) -> dict[str, Any]:
    """Judge one type in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, model_type))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(SECONDS) else None
    except EOFError:
        found = None
    if found is None:
        process.kill()
    process.join()
    return found or {"type": model_type, "verdict": "crash", "reason": f"ended, or took over {SECONDS} s"}


def main() -> None:
    """Judge all types, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--multimodal", action="store_true", help="the multimodal types in place of the causal ones")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for model_type in options.types or (multimodal_types() if options.multimodal else causal_types()):
        rows.append(in_a_fork(model_type))
        row = rows[-1]
        numbers = f"{row.get('layout', ''):5} {row.get('gap', 0):.1e}"
        print(f"{model_type:28} {row['verdict']:9} {numbers} {row['reason'][:140]}", flush=True)
    print(dict(Counter(row["verdict"] for row in rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
