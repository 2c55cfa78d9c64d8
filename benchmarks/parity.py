"""Compare this package with lm-evaluation-harness, item by item: tokens, log-likelihoods, predictions, metrics.

    python benchmarks/parity.py --data-dir FOLDER                       # SmolLM2-135M, every item, float32
    python benchmarks/parity.py --data-dir FOLDER --model FILE.gguf --limit 100
    python benchmarks/parity.py --data-dir FOLDER --tokens-only         # no forward passes

Both sides read the same JSONL files (TASK.jsonl, the hub's field names). The harness' side is its own task, prompt,
tokenisation, `HFLM` forward and metric code; ours is `load_tasks`, `encode_task`, the engine (`--ours engine`) or a
plain forward pass a choice (`--ours plain`), and `item_values`. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_layers.tasks import BENCHMARKS, EncodedChoice, EncodedItem, Task, encode_task, item_values, load_tasks

GAP_NATS = 1e-3  # a prediction counts as different only where the top two are further apart than this


@dataclass(frozen=True)
class Row:
    """What the comparison found for one task.

    Units: `largest_difference_nats` over all choices of all items; accuracies in shares of 1.
    """

    task: str
    items: int
    requests: int
    differing_tokens: int
    differing_predictions: int | None = None
    largest_difference_nats: float | None = None
    acc: tuple[float, float] | None = None
    acc_norm: tuple[float, float] | None = None
    seconds: tuple[float, float] | None = None


def main() -> None:
    """Run the comparison and print one line a task, then one JSON document."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        sides = Sides(options)
        rows = []
        for name in options.tasks.split(","):
            rows.append(compare(name, sides, options, Path(cache)))
            print(line_of(rows[-1]), flush=True)
    names = ("torch", "transformers", "lm_eval")
    document = {
        "model": Path(options.model).name if options.model else "SmolLM2-135M-Instruct",
        "ours": "tokens only" if options.tokens_only else options.ours,
        "dtype": "float32",
        "bos": options.bos,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "tasks": [asdict(row) for row in rows],
    }
    if options.reference:
        options.reference.write_text(json.dumps(sides.reference, indent=1) + "\n")
    print(json.dumps(document))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file, a model folder or a hub id (default: the embedded model)")
    parser.add_argument("--tasks", default=",".join(BENCHMARKS))
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--fewshot", type=int, default=0, help="examples, the first of TASK.train.jsonl")
    parser.add_argument("--bos", choices=("auto", "none"), default="auto")
    parser.add_argument("--batch-size", type=int, default=4, help="of the harness' side")
    parser.add_argument("--tokens-only", action="store_true")
    parser.add_argument(
        "--reference", type=Path, help="also write the harness' tokens and log-likelihoods to this file"
    )
    parser.add_argument("--ours", choices=("engine", "plain"), default="engine")
    return parser.parse_args()


class Sides:
    """The two programs that are compared, with the same float32 weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder, gguf = locate(options.model)
        self.model = None if options.tokens_only else hf_model(folder, gguf)
        self.harness = harness_model(self.model, hf_tokenizer(folder, gguf), options)
        self.tokenizer = self.harness.tokenizer
        self.max_length = 1 << 20 if self.model is None else self.harness.max_length
        self.reference: dict[str, Any] = {}
        self.engine = None
        if self.model is not None and options.ours == "engine":
            self.engine = our_engine(options.model)


def locate(model: str | None) -> tuple[str, str | None]:
    """Split a model into the folder and GGUF file that transformers wants."""
    if model is None:
        from lowmem_layers.model.embedded import embedded_model_path

        model = str(embedded_model_path())
    path = Path(model)
    return (str(path.parent), path.name) if path.suffix == ".gguf" else (model, None)


def hf_tokenizer(folder: str, gguf: str | None) -> Any:
    """Load the tokenizer by transformers alone."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **({"gguf_file": gguf} if gguf else {}))


def hf_model(folder: str, gguf: str | None) -> Any:
    """Load the model by transformers alone, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    keywords = {"gguf_file": gguf} if gguf else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **keywords).eval()


def harness_model(model: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    """Build the harness' model; without weights, one that only tokenises."""
    from lm_eval.models.huggingface import HFLM

    class Recording(HFLM):
        """Keep the requests as they are about to be fed: (context tokens, continuation tokens)."""

        recorded: list[tuple[list[int], list[int]]]

        def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **keywords: Any) -> list[tuple[float, bool]]:
            self.recorded = [(list(context), list(scored)) for _, context, scored in requests]
            if model is None:
                return [(0.0, False)] * len(requests)
            return super()._loglikelihood_tokens(requests, *args, **keywords)

    add_bos = {"auto": None, "none": False}[options.bos]
    if model is not None:
        return Recording(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=options.batch_size,
            add_bos_token=add_bos,
        )
    bare = Recording.__new__(Recording)
    bare.tokenizer, bare.backend, bare.add_bos_token, bare.custom_prefix_token_id = tokenizer, "causal", add_bos, None
    bare.enable_thinking = False
    return bare


def our_engine(model: str | None) -> Any:
    """Load the model by this package, unquantised, in float32."""
    from lowmem_layers.engine import Engine
    from lowmem_layers.model import ModelSpec, load_model

    named = {"model": model} if model else {}
    return Engine(load_model(ModelSpec(**named, quant="none", dtype="float32", device="cpu")))


def compare(name: str, sides: Sides, options: argparse.Namespace, scratch: Path) -> Row:
    """Run both sides on one task."""
    (task,) = load_tasks([name], data_dir=options.data_dir, limit=options.limit, fewshot=options.fewshot)
    encoded = encode_task(task, sides.tokenizer, bos=options.bos, max_length=sides.max_length)
    theirs = harness_task(name, options, scratch)
    docs = [doc for _, doc in zip(task.items, theirs.eval_docs, strict=False)]
    requests = [theirs.construct_requests(doc=doc, ctx=theirs.fewshot_context(doc, options.fewshot)) for doc in docs]
    start = time.perf_counter()
    answers = sides.harness.loglikelihood([one for several in requests for one in several], disable_tqdm=True)
    seconds = time.perf_counter() - start
    differing = differing_tokens(encoded, sides.harness.recorded, sides.max_length)
    sides.reference[name] = reference_of(sides.harness.recorded, answers)
    row = Row(name, len(docs), len(answers), differing)
    return row if sides.model is None else scored(row, task, encoded, theirs, docs, answers, sides, seconds)


def harness_task(name: str, options: argparse.Namespace, scratch: Path) -> Any:
    """Build the harness' own task over a local file; all but the place of the data stays its own."""
    from lm_eval.tasks import TaskManager

    split = BENCHMARKS[name].split
    files = {split: harness_copy(options.data_dir / f"{name}.jsonl", name, scratch)}
    if options.fewshot:
        files["train"] = harness_copy(options.data_dir / f"{name}.train.jsonl", name, scratch)
    manager = TaskManager()
    changes = {
        "include": str(manager.task_index[name].yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": "default",
        "dataset_kwargs": {"data_files": files},
        "training_split": "train" if options.fewshot else None,
        "validation_split": split if split == "validation" else None,
        "test_split": split if split == "test" else None,
        "fewshot_split": "train" if options.fewshot else split,
        "fewshot_config": {"sampler": "first_n"},
    }
    changed = scratch / f"{name}.yaml"
    changed.write_text(json.dumps(changes))  # JSON is YAML
    return manager.load(str(changed))["tasks"][name]


def harness_copy(data: Path, name: str, scratch: Path) -> str:
    """Copy a data file, and make SuperGLUE's `label` from BoolQ's original `answer` where it is missing."""
    copy = scratch / data.name
    with data.open(encoding="utf-8") as lines, copy.open("w", encoding="utf-8") as out:
        for line in lines:
            record = json.loads(line)
            if name == "boolq" and "label" not in record:
                record["label"] = int(record["answer"])
            out.write(json.dumps(record) + "\n")
    return str(copy)


def differing_tokens(encoded: Sequence[EncodedItem], recorded: Sequence[Any], max_length: int) -> int:
    """Count the requests that would feed or score other tokens."""
    ours = [(choice.tokens, choice.n_scored) for item in encoded for choice in item.choices]
    theirs = [(tuple((c + s)[-(max_length + 1) :]), len(s)) for c, s in recorded]
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def reference_of(recorded: Sequence[Any], answers: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """Say what the harness fed and found: a hash of the tokens, how many were scored, the log-likelihood in nats."""
    return [
        {"tokens": tokens_hash(context + scored), "n_scored": len(scored), "loglikelihood": round(value, 5)}
        for (context, scored), (value, _) in zip(recorded, answers, strict=True)
    ]


def tokens_hash(tokens: Sequence[int]) -> str:
    """Shorten a list of token ids to 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:16]


def scored(
    row: Row,
    task: Task,
    encoded: list[EncodedItem],
    theirs: Any,
    docs: list[Any],
    answers: list[tuple[float, bool]],
    sides: Sides,
    seconds: float,
) -> Row:
    """Score with our side and compare."""
    start = time.perf_counter()
    values = our_scores(encoded, sides)
    ours_seconds = time.perf_counter() - start
    groups = list(grouped(answers, [len(item.choices) for item in encoded]))
    reference = padded([[value for value, _ in group] for group in groups])
    results = [theirs.process_results(doc, group) for doc, group in zip(docs, groups, strict=True)]
    harness = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
    own = {value: float(np.mean(metric(task, values, value))) for value in ("acc", "acc_norm")}
    return replace(
        row,
        differing_predictions=differing_predictions(reference, values),
        largest_difference_nats=float(np.nanmax(np.abs(reference - values))),
        acc=(harness["acc"], own["acc"]),
        acc_norm=(harness["acc_norm"], own["acc_norm"]) if "acc_norm" in harness else None,
        seconds=(round(seconds, 1), round(ours_seconds, 1)),
    )


def our_scores(encoded: list[EncodedItem], sides: Sides) -> np.ndarray:
    """Score the full model. Shapes: (items, choices), NaN where an item has fewer choices."""
    if sides.engine is None:
        return padded([[plain_score(sides.model, choice) for choice in item.choices] for item in encoded])
    found: dict[int, list[float]] = {}
    for tile in sides.engine.plan_tiles(encoded, [()]):
        for index, table in zip(tile, sides.engine.score([encoded[i] for i in tile], [()]), strict=True):
            found[index] = list(table[0])
    return padded([found[index] for index in range(len(encoded))])


def plain_score(model: Any, choice: EncodedChoice) -> float:
    """Score one choice by a forward pass of its own: the sum of its tokens' log-probabilities, in nats."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([choice.tokens[:-1]])).logits[0, -choice.n_scored :].float()
    targets = torch.tensor(choice.tokens[-choice.n_scored :])
    return float(logits.log_softmax(-1).gather(1, targets[:, None]).sum())


def grouped(answers: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Cut the flat list of answers into items."""
    start = 0
    for size in sizes:
        yield list(answers[start : start + size])
        start += size


def padded(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Fill up with NaN to the largest number of choices."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def metric(task: Task, values: np.ndarray, name: str) -> np.ndarray:
    """Apply one of this package's metrics to the full model's scores."""
    lengths = [[[*item.choice_chars], [*item.choice_bytes]] for item in task.items]
    chars, n_bytes = (np.nan_to_num(padded([pair[side] for pair in lengths])).astype(int) for side in (0, 1))
    return item_values(values[:, None, :], [item.gold for item in task.items], chars, n_bytes, name)[:, 0]


def differing_predictions(reference: np.ndarray, values: np.ndarray) -> int:
    """Count items whose likeliest choice differs though the reference's top two are more than 1e-3 nats apart."""
    top = np.sort(np.nan_to_num(reference, nan=-np.inf), axis=1)
    clear = top[:, -1] - top[:, -2] > GAP_NATS
    return int((clear & (np.nanargmax(reference, axis=1) != np.nanargmax(values, axis=1))).sum())


def line_of(row: Row) -> str:
    """Write one row for people."""
    text = f"{row.task:<14} items {row.items:>5}  requests {row.requests:>5}  differing tokens {row.differing_tokens}"
    if row.acc is None or row.largest_difference_nats is None:
        return text
    normed = "" if row.acc_norm is None else f"  acc_norm {row.acc_norm[0]:.4f} / {row.acc_norm[1]:.4f}"
    return (
        f"{text}  differing predictions {row.differing_predictions}  "
        f"largest difference {row.largest_difference_nats:.1e} nats  acc {row.acc[0]:.4f} / {row.acc[1]:.4f}{normed}"
    )


if __name__ == "__main__":
    main()
