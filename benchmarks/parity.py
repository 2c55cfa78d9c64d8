"""Compare this package with lm-evaluation-harness, item by item: tokens, log-likelihoods, predictions, metrics.

    python -m benchmarks.parity --data-dir FOLDER                       # SmolLM2-135M, every item, float32
    python -m benchmarks.parity --data-dir FOLDER --model FILE.gguf --limit 100
    python -m benchmarks.parity --data-dir FOLDER --tokens-only         # no forward passes
    python -m benchmarks.parity --data-dir FOLDER --chat-template       # items as chats, by the tokenizer's template
    python -m benchmarks.parity --data-dir FOLDER --reference R.json    # keep the harness' answers as they come ...
    python -m benchmarks.parity --data-dir FOLDER --against R.json      # ... and compare with them again, or continue

Both sides read the same JSONL files (TASK.jsonl, with the hub's field names). The harness' side is its own task,
prompt, tokenisation, `HFLM` forward pass and metric code. Our side is `load_tasks`, `encode_task`, the engine (`--ours
engine`) or one plain forward pass for each choice (`--ours plain`), and `item_values`. The last line is one JSON
document; the exit status is 1 if the two sides are not equal.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parity_harness import Answer, HarnessSide, harness_task, hf_model, locate, tokens_hash
from lowmem_layers.tasks import BENCHMARKS, EncodedChoice, EncodedItem, Task, encode_task, item_values, load_tasks

GAP_NATS = 1e-3  # a prediction counts as different only where the top two are further apart than this


@dataclass(frozen=True)
class Row:
    """The result of the comparison for one task.

    A pair is the harness' number and ours. `not_the_same` names the items whose prediction, acc or acc_norm differs,
    with the gap between their two likeliest choices.

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
    not_the_same: dict[str, float] | None = None


def main() -> None:
    """Run the comparison; print a line for each task and one JSON document; exit with 1 if anything is not equal."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(HF_DATASETS_CACHE=cache, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        side = HarnessSide(options)
        engine = None if options.tokens_only or options.ours == "plain" else our_engine(options.model)
        rows = []
        for name in options.tasks.split(","):
            rows.append(compare(name, side, engine, options, Path(cache)))
            print(line_of(rows[-1]), flush=True)
    names = ("torch", "transformers", "lm_eval")
    document = {
        **side.setting,
        "ours": "tokens only" if options.tokens_only else options.ours,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "tasks": [asdict(row) for row in rows],
        "equal": all(is_equal(row) for row in rows),
    }
    print(json.dumps(document))
    sys.exit(0 if document["equal"] else 1)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file, a model folder or a hub id (default: the embedded model)")
    parser.add_argument("--tasks", default=",".join(BENCHMARKS))
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LOWMEM_LAYERS_DATA"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--fewshot", type=int, default=0, help="examples, the first of TASK.train.jsonl")
    parser.add_argument("--bos", choices=("auto", "none"), default="auto")
    parser.add_argument(
        "--chat-template", action="store_true", help="write items as chats, by the tokenizer's template"
    )
    parser.add_argument("--max-length", type=int, help="most tokens of a context (default: the model's window)")
    parser.add_argument("--batch-size", type=int, default=4, help="of the harness' side")
    parser.add_argument("--tokens-only", action="store_true")
    parser.add_argument("--reference", type=Path, help="keep the harness' tokens and log-likelihoods in this file")
    parser.add_argument("--against", type=Path, help="take them from such a file, as far as it has them")
    parser.add_argument("--ours", choices=("engine", "plain"), default="engine")
    options = parser.parse_args()
    if not options.data_dir:
        parser.error("give --data-dir FOLDER, or set LOWMEM_LAYERS_DATA")
    options.data_dir = Path(options.data_dir)
    return options


def our_engine(model: str | None) -> Any:
    """Load the model with this package, unquantised, in float32."""
    from lowmem_layers.engine import ready_engine
    from lowmem_layers.model import ModelSpec, load_model
    from lowmem_layers.model.spec import EMBEDDED_MODEL

    return ready_engine(load_model(ModelSpec(model or EMBEDDED_MODEL, quant="none", dtype="float32", device="cpu")))


def compare(name: str, side: HarnessSide, engine: Any, options: argparse.Namespace, scratch: Path) -> Row:
    """Run both sides on one task."""
    chosen = {"limit": options.limit, "fewshot": options.fewshot}
    template = "tokenizer" if options.chat_template else None
    (task,) = load_tasks([name], data_dir=options.data_dir, chat_template=template, **chosen)
    encoded = encode_task(task, side.tokenizer, bos=options.bos, max_length=side.max_length)
    theirs = harness_task(name, options, scratch)
    docs = [doc for _, doc in zip(task.items, theirs.eval_docs, strict=False)]
    chat = {"apply_chat_template": True, "chat_template": side.harness.apply_chat_template} if template else {}
    turns = {**chat, "fewshot_as_multiturn": True} if template else {}  # the harness' default
    requests = [
        theirs.construct_requests(doc=doc, ctx=theirs.fewshot_context(doc, options.fewshot, **turns), **chat)
        for doc in docs
    ]
    start = time.perf_counter()
    answers = side.answer(name, [one for several in requests for one in several])
    seconds = round(time.perf_counter() - start, 1)
    row = Row(name, len(docs), len(answers), differing_tokens(encoded, answers))
    if options.tokens_only:
        return row
    start = time.perf_counter()
    values = plain_scores(encoded, side) if engine is None else engine_scores(encoded, engine)
    ours_seconds = round(time.perf_counter() - start, 1)
    found = [answer.loglikelihood for answer in answers]
    groups = list(grouped(found, [len(item.choices) for item in encoded]))
    results = [
        theirs.process_results(doc, [(value, False) for value in group])
        for doc, group in zip(docs, groups, strict=True)
    ]
    return scored(replace(row, seconds=(seconds, ours_seconds)), task, results, padded(groups), values)


def differing_tokens(encoded: Sequence[EncodedItem], answers: Sequence[Answer]) -> int:
    """Count the requests for which the two sides feed or score different tokens."""
    ours = [(tokens_hash(choice.tokens), choice.n_scored) for item in encoded for choice in item.choices]
    theirs = [(answer.tokens, answer.n_scored) for answer in answers]
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def scored(row: Row, task: Task, results: Sequence[dict[str, float]], reference: np.ndarray, values: np.ndarray) -> Row:
    """Compare log-likelihoods, predictions and metrics; `results` are the harness' own metrics for each item.

    Shapes: `reference` and `values` (items, choices), NaN where an item has fewer choices.
    """
    own = {name: metric(task, values, name) for name in ("acc", "acc_norm")}
    metrics = {name: np.array([result[name] for result in results]) for name in own if name in results[0]}
    gap = top_gap(reference)
    other = {item for name in metrics for item in np.flatnonzero(metrics[name] != own[name])}
    other |= set(np.flatnonzero(predictions(reference) != predictions(values)))
    return replace(
        row,
        differing_predictions=differing_predictions(reference, values),
        largest_difference_nats=largest_difference(reference, values),
        acc=(float(metrics["acc"].mean()), float(own["acc"].mean())),
        acc_norm=(float(metrics["acc_norm"].mean()), float(own["acc_norm"].mean())) if "acc_norm" in metrics else None,
        not_the_same={task.items[item].id: float(gap[item]) for item in sorted(other)},
    )


def engine_scores(encoded: list[EncodedItem], engine: Any) -> np.ndarray:
    """Score the full model with the engine. Shapes: (items, choices), NaN where an item has fewer choices."""
    found: dict[int, list[float]] = {}
    for tile in engine.plan_tiles(encoded, [()]):
        for index, table in zip(tile, engine.score([encoded[i] for i in tile], [()]), strict=True):
            found[index] = list(table[0])
    return padded([found[index] for index in range(len(encoded))])


def plain_scores(encoded: list[EncodedItem], side: HarnessSide) -> np.ndarray:
    """Score the full model with one forward pass for each choice. Shapes: as `engine_scores`."""
    model = side.model or hf_model(*locate(side.options.model))
    return padded([[plain_score(model, choice) for choice in item.choices] for item in encoded])


def plain_score(model: Any, choice: EncodedChoice) -> float:
    """Score one choice with its own forward pass: the sum of its tokens' log-probabilities, in nats."""
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


def largest_difference(reference: np.ndarray, values: np.ndarray) -> float:
    """Give the largest difference; infinity if only one side has a number somewhere."""
    if (np.isfinite(reference) != np.isfinite(values)).any():
        return float("inf")
    return float(np.nanmax(np.abs(reference - values)))


def predictions(values: np.ndarray) -> np.ndarray:
    """Give each item's likeliest choice."""
    return np.nan_to_num(values, nan=-np.inf).argmax(axis=1)


def top_gap(reference: np.ndarray) -> np.ndarray:
    """Give the difference between an item's two likeliest choices, in nats."""
    top = np.sort(np.nan_to_num(reference, nan=-np.inf), axis=1)
    return top[:, -1] - top[:, -2]


def differing_predictions(reference: np.ndarray, values: np.ndarray) -> int:
    """Count items whose likeliest choice differs though the reference's top two are more than 1e-3 nats apart."""
    return int(((top_gap(reference) > GAP_NATS) & (predictions(reference) != predictions(values))).sum())


def is_equal(row: Row) -> bool:
    """Tell whether tokens, predictions, log-likelihoods and metrics of a task are equal, as the package promises."""
    if row.largest_difference_nats is None:
        return row.differing_tokens == 0
    clear = [item for item, gap in (row.not_the_same or {}).items() if gap > GAP_NATS]
    return row.differing_tokens == row.differing_predictions == len(clear) == 0 and (
        row.largest_difference_nats <= GAP_NATS
    )


def line_of(row: Row) -> str:
    """Write one row as a line of text."""
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
