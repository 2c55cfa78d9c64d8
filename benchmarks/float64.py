"""Compare sweep and whole forward passes in float32 with float64: which of the two is farther from it, and where.

    python -m benchmarks.float64 --data-dir FOLDER [--task piqa] [--items 1] [--removed attn.0+ffn.0]

Takes the items with the longest choices of the first 400, on the embedded model. The float64 reference is plain
transformers, with RMSNorm in float64 too (its own computes in float32 whatever the model's type). One line for the full
model and one for the coalition: largest gaps in nats; then the relative error of the residual stream of whole float32
passes behind each decoder layer.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from transformers.models.llama import modeling_llama

from benchmarks.whole import Whole
from lowmem_layers.engine import ready_engine, reference_loglikelihoods
from lowmem_layers.game.players.coalitions import parse_coalition
from lowmem_layers.model import ModelSpec, load_model
from lowmem_layers.model.checkpoint.embedded import embedded_model_path
from lowmem_layers.tasks import EncodedChoice, encode_task, load_tasks


class Watched(Whole):
    """Plain transformers whose residual stream is looked at behind every decoder layer."""

    @torch.inference_mode()
    def score_and_watch(self, choice: EncodedChoice, removed: tuple[int, ...]) -> tuple[float, list[torch.Tensor]]:
        """Give a choice's log-likelihood, and the residual stream behind every decoder layer."""
        self.removed = removed
        found = self.module(torch.tensor([choice.tokens[:-1]]), use_cache=False, output_hidden_states=True)
        wanted = torch.tensor(choice.tokens[-choice.n_scored :])[:, None]
        logprobs = found.logits[0].log_softmax(-1)[-choice.n_scored :].gather(1, wanted)
        return float(logprobs.double().sum()), [each[0].double() for each in found.hidden_states]


def norm_in_its_own_type(self: modeling_llama.LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute RMSNorm in the type of its input. Shapes: (..., hidden)."""
    mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * (hidden_states * torch.rsqrt(mean_square + self.variance_epsilon))


def main() -> None:
    """Print both lines, the errors by layer, and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("LOWMEM_LAYERS_DATA"))
    parser.add_argument("--task", default="piqa")
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--removed", default="attn.0+ffn.0")
    options = parser.parse_args()
    # 1) both float32 routes
    model = load_model(ModelSpec(dtype="float32"))
    (task,) = load_tasks([options.task], data_dir=Path(options.data_dir), limit=400)
    items = encode_task(task, model.tokenizer, bos="none", max_length=model.max_length)
    items = sorted(items, key=lambda item: -max(choice.n_scored for choice in item.choices))[: options.items]
    coalitions = ((), parse_coalition(options.removed, [player.name for player in model.players]))
    sweep = ready_engine(model).score(items, coalitions)
    plain = reference_loglikelihoods(model, items, coalitions)
    # 2) float64
    modeling_llama.LlamaRMSNorm.forward = norm_in_its_own_type
    wide, narrow = (Watched(embedded_model_path(), dtype) for dtype in (torch.float64, torch.float32))
    rows = []
    for place, removed in enumerate(coalitions):
        exact = [[wide.score_and_watch(choice, removed)[0] for choice in item.choices] for item in items]
        gaps = [(s[place] - p[place], s[place] - e, p[place] - e) for s, p, e in zip(sweep, plain, exact, strict=True)]
        largest = [float(max(np.abs(each[which]).max() for each in gaps)) for which in range(3)]
        states = [whole.score_and_watch(items[0].choices[0], removed)[1] for whole in (narrow, wide)]
        errors = [float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max()) for a, b in zip(*states, strict=True)]
        rows.append(
            {
                "removed": options.removed if removed else "",
                "loglikelihood": float(np.mean([np.mean(e) for e in exact])),
                "sweep_whole": largest[0],
                "sweep_float64": largest[1],
                "whole_float64": largest[2],
                "stream_errors": errors,
            }
        )
        gaps_said = (
            "sweep against whole passes {:.1e}, sweep against float64 {:.1e}, whole passes against it {:.1e} nats"
        )
        print(f"{options.removed if removed else 'full model'}: {gaps_said.format(*largest)}")
        print("  residual stream, relative:", " ".join(f"{error:.1e}" for error in errors))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
