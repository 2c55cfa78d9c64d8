"""Compare perplexities with lm-evaluation-harness: LAMBADA's and WikiText's own task files, over a text of your own.

    python -m benchmarks.parity_kinds [--text FILE] [--items 20] [--max-length 128]

LAMBADA's file is of output type `loglikelihood` (the last word of a passage), WikiText's of `loglikelihood_rolling`
(every token, in words and bytes as its own Python rule counts them). Both sides read the same YAML files; theirs is
`simple_evaluate` with `HFLM` on the embedded model in float32, ours is a run with `--include-path`, and its findings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.parity_harness import hf_model, hf_tokenizer, locate

TASKS = {"own_lambada": "lambada/lambada_openai.yaml", "own_wikitext": "wikitext/wikitext.yaml"}
MOST = 1e-4  # relative difference of a perplexity


def main() -> None:
    """Run both sides; print both perplexities of each kind; exit with 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("benchmarks/README.md"))
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--max-length", type=int, default=128, help="most tokens of a window, on both sides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(HF_DATASETS_CACHE=folder, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        write_tasks(Path(folder), options)
        theirs, ours = harness_side(Path(folder), options), our_side(Path(folder), options)
    equal = True
    for name, value in theirs.items():
        difference = abs(ours[name] - value) / (abs(value) or 1.0)
        equal &= difference <= (MOST if "acc" not in name else 0.005)  # ours is written with one decimal of a per cent
        print(f"{name:<32} {value:12.5f} {ours[name]:12.5f}  relative difference {difference:.1e}")
    sys.exit(0 if equal else 1)


def write_tasks(folder: Path, options: argparse.Namespace) -> None:
    """Write the two task files, which change nothing but the place of the data, and the data."""
    import lm_eval

    installed = Path(str(lm_eval.__file__)).parent / "tasks"
    passages = [" ".join(one.split()) for one in options.text.read_text(encoding="utf-8").split("\n\n")]
    passages = [one for one in passages if len(one.split()) >= 20][: options.items]
    for (name, file), field in zip(TASKS.items(), ("text", "page"), strict=True):
        rows = [json.dumps({field: one}) + "\n" for one in passages]
        (folder / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        changes = {
            "include": str(installed / file),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "validation_split": None,
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        }
        (folder / f"{name}.yaml").write_text(json.dumps(changes))  # JSON is YAML


def harness_side(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Let the harness evaluate the embedded model."""
    import lm_eval.models.huggingface
    import lm_eval.tasks

    harness: Any = lm_eval  # its names are made when they are asked for, which types do not tell

    place = locate(None)
    model = harness.models.huggingface.HFLM(
        pretrained=hf_model(*place),
        tokenizer=hf_tokenizer(*place),
        backend="causal",
        batch_size=1,
        max_length=options.max_length,
    )
    manager = harness.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    results = harness.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)[
        "results"
    ]
    names = ("perplexity", "acc", "word_perplexity", "byte_perplexity", "bits_per_byte")
    return {
        f"{task} {name}": found[f"{name},none"] for task, found in results.items() for name in names
        if f"{name},none" in found
    }  # fmt: skip


def our_side(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run the full model as a user would, and read what the findings say."""
    from lowmem_layers import StudySpec, run_study
    from lowmem_layers.model import load

    original = load.longest_input
    load.longest_input = lambda *arguments: min(options.max_length, original(*arguments))
    found: dict[str, float] = {}
    for name in TASKS:  # in a run of its own: what its findings say is for measures that all tasks of a run have
        spec = StudySpec(
            tasks=(f"lm_eval:{name}",),
            include_path=str(folder),
            trust_task_code=True,
            dtype="float32",
            device="cpu",
            max_removed=0,
            threads=1,
        )
        for line in run_study(spec, folder / f"run-{name}").findings.perplexities:
            task, _, values = line.removeprefix("lm_eval:").partition(": ")
            for one in values.replace(" of the continuations", "").split(", "):
                if one.startswith("of which it would have written "):
                    found[f"{task} acc"] = float(one.split()[-2]) / 100
                elif one.endswith(" bits per byte"):
                    found[f"{task} bits_per_byte"] = float(one.removesuffix(" bits per byte"))
                else:
                    measure, _, value = one.rpartition(" ")
                    found[f"{task} {measure.replace(' ', '_')}"] = float(value)
    return found


if __name__ == "__main__":
    main()
