"""How much faster is the sweep than the ways that a user would take otherwise?

Three baselines run on the same items, each with the best of five batch sizes: (a) whole forward passes for each
coalition, with rows sorted by length and padded, and log-softmax at all positions, as lm-evaluation-harness does; (b)
the same with more care: the head only at scored positions; (c) lm-evaluation-harness itself, its HFLM around the model
with the stubs in it. A baseline is timed on a random sample of coalitions, one at a time between the engine's tiles,
and scaled to all of them. The last line is one JSON document.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.parity_harness import harness_class
from benchmarks.setting import all_windows, finish, parser, real_items, start_resident
from lowmem_layers.engine import ready_engine
from lowmem_layers.model.anatomy.decoder import DecoderModel
from lowmem_layers.tasks import EncodedItem

BATCH_SIZES = (1, 2, 4, 8, 16)
Evaluate = Callable[[Sequence[EncodedItem], int], np.ndarray]
"""Scores all choices of all items in order, with a batch size; the sublayers are already removed."""


def rows_of(items: Sequence[EncodedItem]) -> list[Any]:
    return [choice for item in items for choice in item.choices]


def padded_batches(rows: Sequence[Any], size: int) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda r: -len(rows[r].tokens))
    return [order[low : low + size] for low in range(0, len(order), size)]


def pad(rows: Sequence[Any], members: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(rows[r].tokens) - 1 for r in members)
    ids, present = torch.zeros(2, len(members), longest, dtype=torch.long)
    for line, r in enumerate(members):
        tokens = rows[r].tokens[:-1]
        ids[line, : len(tokens)] = torch.tensor(tokens)
        present[line, : len(tokens)] = 1
    return ids, present


def scored_span(row: Any) -> slice:
    end = len(row.tokens) - 1
    return slice(end - row.n_scored, end)


def whole_forwards(model: DecoderModel) -> Evaluate:
    """(a): logits and log-softmax at every position."""

    def evaluate(items: Sequence[EncodedItem], size: int) -> np.ndarray:
        rows, scores = rows_of(items), np.zeros(len(rows_of(items)))
        for members in padded_batches(rows, size):
            ids, present = pad(rows, members)
            logprobs = model.module(input_ids=ids, attention_mask=present, use_cache=False).logits.log_softmax(-1)
            for line, r in enumerate(members):
                wanted = torch.tensor(rows[r].tokens[-rows[r].n_scored :])[:, None]
                scores[r] = logprobs[line, scored_span(rows[r])].gather(1, wanted).sum().item()
        return scores

    return evaluate


def careful_forwards(model: DecoderModel) -> Evaluate:
    """(b): the decoder layers at every position, the head at the scored ones."""

    def evaluate(items: Sequence[EncodedItem], size: int) -> np.ndarray:
        rows, scores = rows_of(items), np.zeros(len(rows_of(items)))
        for members in padded_batches(rows, size):
            ids, present = pad(rows, members)
            hidden = model.module.model(input_ids=ids, attention_mask=present, use_cache=False).last_hidden_state
            spans = [hidden[line, scored_span(rows[r])] for line, r in enumerate(members)]
            logprobs = model.module.lm_head(torch.cat(spans)).log_softmax(-1)
            wanted = torch.tensor([token for r in members for token in rows[r].tokens[-rows[r].n_scored :]])
            chosen = logprobs.gather(1, wanted[:, None])[:, 0].split([rows[r].n_scored for r in members])
            for r, values in zip(members, chosen, strict=True):
                scores[r] = values.sum().item()
        return scores

    return evaluate


def harness(model: DecoderModel) -> Evaluate:
    """(c): lm-evaluation-harness' own class, given the same tokens."""
    wrapped: dict[int, Any] = {}

    def evaluate(items: Sequence[EncodedItem], size: int) -> np.ndarray:
        if size not in wrapped:
            wrapped[size] = harness_class()(
                pretrained=model.module, tokenizer=model.tokenizer, batch_size=size, device="cpu"
            )
        requests = [
            (("", ""), list(row.tokens[: -row.n_scored]), list(row.tokens[-row.n_scored :])) for row in rows_of(items)
        ]
        return np.array([score for score, _ in wrapped[size]._loglikelihood_tokens(requests, disable_tqdm=True)])

    return evaluate


def timed(evaluate: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = evaluate()
    return time.perf_counter() - begin, result


def best_batch_size(evaluate: Evaluate, items: Sequence[EncodedItem]) -> tuple[int, dict[int, float]]:
    """Time every batch size on the full model, twice in turn; take the fastest."""
    evaluate(items[:2], BATCH_SIZES[0])
    times: dict[int, float] = dict.fromkeys(BATCH_SIZES, float("inf"))
    for _ in range(2):
        for size in BATCH_SIZES:
            times[size] = min(times[size], timed(lambda size=size: evaluate(items, size))[0])
    return min(times, key=lambda size: times[size]), times


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sample", type=int, default=12, help="coalitions on which a baseline is timed")
    options.add_argument("--tiles", type=int, default=4, help="tiles of the engine, timed between the baselines")
    options.add_argument("--seed", type=int, default=0)
    options = options.parse_args()
    model = start_resident(options)
    items, coalitions = real_items(model, options), all_windows(model, options)
    engine = ready_engine(model)
    baselines = {"whole": whole_forwards(model), "careful": careful_forwards(model), "harness": harness(model)}
    sizes = {name: best_batch_size(evaluate, items) for name, evaluate in baselines.items()}
    for name, (best, times) in sizes.items():
        print(f"{name:8s} best batch size {best}: " + ", ".join(f"{s}: {t:.2f} s" for s, t in times.items()))
    sample = random.Random(options.seed).sample(coalitions, options.sample)
    tiles = np.array_split(np.random.default_rng(options.seed).permutation(len(items)), options.tiles)
    ours_s, ours = 0.0, {}
    seconds: dict[str, list[float]] = {name: [] for name in baselines}
    gaps = dict.fromkeys(baselines, 0.0)
    turns = max(options.sample, options.tiles)
    theirs: dict[tuple[str, int], np.ndarray] = {}
    for turn in range(turns):
        for tile in tiles[turn : turn + 1]:
            spent, scores = timed(lambda tile=tile: engine.score([items[i] for i in tile], coalitions))
            ours_s += spent
            ours |= dict(zip(tile.tolist(), scores, strict=True))
        for name, evaluate in baselines.items():
            for removed in sample[turn : turn + 1]:
                with model.removed(removed):
                    spent, scores = timed(lambda e=evaluate, n=name: e(items, sizes[n][0]))
                seconds[name].append(spent)
                theirs[name, turn] = scores
    for (name, turn), scores in theirs.items():
        column = coalitions.index(sample[turn])
        mine = np.concatenate([ours[i][column] for i in range(len(items))])
        gaps[name] = max(gaps[name], float(np.abs(mine - scores).max()))
    report(options, engine, items, coalitions, ours_s, seconds, gaps, {n: b for n, (b, _) in sizes.items()})


def report(options, engine, items, coalitions, ours_s, seconds, gaps, best) -> None:  # noqa: ANN001
    rows = {}
    for name, spent in seconds.items():
        total = statistics.fmean(spent) * len(coalitions)
        spread = statistics.stdev(spent) / statistics.fmean(spent)
        rows[name] = {"batch_size": best[name], "seconds": total, "ratio": total / ours_s, "spread": spread}
        rows[name]["largest_gap_nats"] = gaps[name]
        print(
            f"{name:8s} {total:8.0f} s  {total / ours_s:5.2f} × ours   largest gap {gaps[name]:.1e} nats"
            f"   (spread of one coalition {100 * spread:.0f} %)"
        )
    print(f"ours     {ours_s:8.0f} s for {len(items)} items, {len(coalitions)} coalitions")
    tokens = {
        "rows": sum(len(choice.tokens) - 1 for item in items for choice in item.choices),
        "trie": sum(len(row) for row in engine._rows(items)),
    }
    finish({"benchmark": "engine_speed", "ours_s": ours_s, "baselines": rows, "tokens": tokens}, options)


if __name__ == "__main__":
    main()
