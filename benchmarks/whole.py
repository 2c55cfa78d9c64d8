"""Do sweeps of real models equal whole forward passes of plain transformers, with hooks that zero what is removed?

    python -m benchmarks.whole MODEL [--tasks quick,piqa] [--data-dir FOLDER] [--lines FILE] [--items 8]

MODEL is a folder or a GGUF file. The items are the first of each task; or, with `--lines`, the lines of a text, whose
last quarter is scored beside that of the next line. The coalitions are the full model, every second single removal and
windows of up to four sublayers, drawn with a fixed seed. The other side shares nothing with the package but the tokens:
it loads MODEL by transformers in float32 and scores every choice on its own, with torch's log-softmax in float32, as
lm-evaluation-harness does; the gap to the same logits' log-softmax in float64 is told beside it. Prints one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from lowmem_layers.engine import ready_engine
from lowmem_layers.game.players.coalitions import windows
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.tasks import EncodedChoice, EncodedItem, encode_task, load_tasks

_ATTENTION, _FEED_FORWARD = ("self_attn", "attn"), ("mlp",)


class Whole:
    """Plain transformers, with hooks that replace what removed sublayers give by zeros."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        file: dict[str, str] = {} if path.is_dir() else {"gguf_file": path.name}
        folder = path if path.is_dir() else path.parent
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
        self.module: Any = loaded.to(dtype).eval()
        self.removed: tuple[int, ...] = ()
        inner = getattr(self.module, "model", None) or self.module.transformer
        players = 0
        for layer in getattr(inner, "layers", None) or inner.h:
            for names in (_ATTENTION, _FEED_FORWARD):
                sublayer = next(getattr(layer, name) for name in names if hasattr(layer, name))
                sublayer.register_forward_hook(self.hook(players))
                players += 1

    def hook(self, player: int) -> Any:
        """Make the hook of one sublayer."""

        def replaced(module: Any, inputs: Any, given: Any) -> Any:
            if player not in self.removed:
                return given
            return (torch.zeros_like(given[0]), *given[1:]) if isinstance(given, tuple) else torch.zeros_like(given)

        return replaced

    @torch.inference_mode()
    def score(self, choice: EncodedChoice, removed: tuple[int, ...]) -> tuple[float, float]:
        """Give a choice's log-likelihood in nats, by a log-softmax in float32 and by one in float64."""
        self.removed = removed
        logits = self.module(torch.tensor([choice.tokens[:-1]]), use_cache=False).logits[0]  # (T, V)
        wanted = torch.tensor(choice.tokens[-choice.n_scored :])[:, None]
        steps = (logits[-choice.n_scored :].to(dtype).log_softmax(-1) for dtype in (torch.float32, torch.float64))
        narrow, wide = (float(each.gather(1, wanted).double().sum()) for each in steps)
        return narrow, wide


def lines_as_items(file: Path, tokenizer: Any, most: int) -> list[EncodedItem]:
    """Score each line's last quarter, and the next line's in its place."""
    rows = [tuple(tokenizer(line).input_ids) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    items = []
    for number, row in enumerate(rows[:most]):
        other = rows[(number + 1) % len(rows)]
        context, ends = row[: -len(row) // 4], (row[-len(row) // 4 :], other[-len(other) // 4 :])
        choices = tuple(EncodedChoice((*context, *end), len(end)) for end in ends)
        items.append(EncodedItem("lines", str(number), choices, 0, str(number)))
    return items


def main() -> None:
    """Compare both sides and print the gaps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", default="quick")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--items", type=int, default=8, help="of each task")
    parser.add_argument("--coalitions", type=int, default=12)
    options = parser.parse_args()
    model = load_model(ModelSpec(str(options.model), dtype="float32", device="cpu"))
    if options.lines:
        items = lines_as_items(options.lines, model.tokenizer, options.items)
    else:
        tasks = load_tasks(options.tasks.split(","), limit=options.items, data_dir=options.data_dir)
        items = [each for task in tasks for each in encode_task(task, model.tokenizer, max_length=model.max_length)]
    some = windows(len(model.players), 4)
    drawn = random.Random(0).sample([each for each in some if len(each) > 1], options.coalitions)
    sample = [(), *[(player,) for player in range(0, len(model.players), 2)][: options.coalitions], *drawn]
    every = [*sample, *(each for each in some if len(each) <= 2 and each not in sample)]  # so that prefixes are shared
    engine = ready_engine(model)
    sweep = engine.score(items, every)
    whole = Whole(options.model)
    gaps: dict[str, list[np.ndarray]] = {}
    to_float64 = 0.0
    for item, ours in zip(items, sweep, strict=True):
        theirs = np.array([[whole.score(choice, removed) for choice in item.choices] for removed in sample])
        apart = np.abs(ours[: len(sample), :, None] - theirs)  # (coalitions, choices, both log-softmaxes)
        gaps.setdefault(item.task, []).append(apart[..., 0].max(axis=1))
        to_float64 = max(to_float64, float(apart[..., 1].max()))
    by_coalition = np.concatenate([np.stack(each) for each in gaps.values()]).max(axis=0)  # (coalitions,)
    names = ["+".join(model.players[player].name for player in removed) for removed in sample]
    result = {
        "model": options.model.name,
        "architecture": type(model.module).__name__,
        "players": len(model.players),
        "layout": engine.layout,
        "coalitions": len(sample),
        "items": {task: len(each) for task, each in gaps.items()},
        "largest_gap_nats": {task: float(np.max(each)) for task, each in gaps.items()},
        "largest_gap_to_float64_log_softmax": to_float64,
        "gap_by_removed": dict(zip(names, by_coalition.tolist(), strict=True)),
        "largest_loglikelihood_nats": float(max(np.abs(each).max() for each in sweep)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
