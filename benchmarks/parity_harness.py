"""lm-evaluation-harness' side of the comparison: its model, its tasks over local files, its answers.

`HarnessSide.answer` gives the tokens that the harness fed, and the log-likelihoods that it found, for one task. It can
take them from the file of an earlier comparison, because the harness needs one forward pass for each choice, which is
most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowmem_layers.tasks import BENCHMARKS

CHUNK = 400  # requests fed and kept at once


def locate(model: str | None) -> tuple[str, str | None]:
    """Split a model's name into the folder and the GGUF file that transformers takes."""
    if model is None:
        from lowmem_layers.model.checkpoint.embedded import embedded_model_path

        model = str(embedded_model_path())
    path = Path(model)
    return (str(path.parent), path.name) if path.suffix == ".gguf" else (model, None)


def hf_tokenizer(folder: str, gguf: str | None) -> Any:
    """Load the tokenizer with transformers alone."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **({"gguf_file": gguf} if gguf else {}))


def hf_model(folder: str, gguf: str | None) -> Any:
    """Load the model with transformers alone, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    keywords = {"gguf_file": gguf} if gguf else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **keywords).eval()


def harness_class() -> Any:
    """Give lm-evaluation-harness' class; its decorator declares it as the base class of all, which takes nothing."""
    from lm_eval.models.huggingface import HFLM

    return HFLM


def harness_model(model: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    """Build the harness' model; if it has no weights, it only tokenises."""

    class Recording(harness_class()):
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
            max_length=options.max_length,
            add_bos_token=add_bos,
        )
    bare = Recording.__new__(Recording)
    bare.tokenizer, bare.backend, bare.add_bos_token, bare.custom_prefix_token_id = tokenizer, "causal", add_bos, None
    bare.enable_thinking, bare.chat_template_args = False, {}
    return bare


@dataclass(frozen=True)
class Answer:
    """The tokens and the log-likelihood of one choice; `loglikelihood` in nats, None if only tokens are compared."""

    tokens: str
    n_scored: int
    loglikelihood: float | None


class HarnessSide:
    """The harness' answers, task by task: computed now and kept in a file, or read from that file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.setting = setting_of(options)
        self.known: dict[str, list[Answer]] = read_answers(options.against, self.setting) if options.against else {}
        self.model: Any = None
        self.tokenizer = hf_tokenizer(*locate(options.model))

    @cached_property
    def harness(self) -> Any:
        """Load the model, at the first answer that is not in the file."""
        if not self.options.tokens_only:
            self.model = hf_model(*locate(self.options.model))
        return harness_model(self.model, self.tokenizer, self.options)

    @property
    def max_length(self) -> int:
        """Give the number of tokens to which a text is cut on the left."""
        if self.options.max_length is not None:
            return int(self.options.max_length)
        return (1 << 20) if self.options.tokens_only else int(self.harness.max_length)

    def answer(self, name: str, requests: Sequence[Any]) -> list[Answer]:
        """Give the answers to one task's requests; keep each at once, so that a stopped comparison can go on."""
        known = self.known.setdefault(name, [])
        while len(known) < len(requests):
            known += self._found(requests[len(known) : len(known) + CHUNK])
            self._keep()
        return known

    def _found(self, requests: Sequence[Any]) -> list[Answer]:
        values = self.harness.loglikelihood(list(requests), disable_tqdm=True)
        scored = [None if self.options.tokens_only else round(value, 6) for value, _ in values]
        fed = [((c + s)[-(self.max_length + 1) :], len(s)) for c, s in self.harness.recorded]
        return [Answer(tokens_hash(t), n, v) for (t, n), v in zip(fed, scored, strict=True)]

    def _keep(self) -> None:
        if self.options.reference:
            answers = {name: [asdict(one) for one in several] for name, several in self.known.items()}
            text = json.dumps({"setting": self.setting, **answers}, indent=1) + "\n"
            scratch = self.options.reference.with_suffix(".part")
            scratch.write_text(text)
            scratch.replace(self.options.reference)


def setting_of(options: argparse.Namespace) -> dict[str, Any]:
    """List the settings that decide the harness' answers; the items themselves are not among them."""
    return {
        "model": Path(options.model).name if options.model else "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "bos": options.bos,
        "fewshot": options.fewshot,
        **({"chat_template": "tokenizer"} if options.chat_template else {}),
        "max_length": options.max_length,
        "limit": options.limit,
        "lm_eval": importlib.metadata.version("lm_eval"),
    }


def read_answers(path: Path, setting: dict[str, Any]) -> dict[str, list[Answer]]:
    """Read the answers of an earlier comparison; exit if it had other settings."""
    document = json.loads(path.read_text())
    there = document.pop("setting")
    if there != setting:
        sys.exit(f"{path} is of another setting: {there}, not {setting}")
    return {name: [Answer(**one) for one in several] for name, several in document.items()}


def harness_task(name: str, options: argparse.Namespace, scratch: Path) -> Any:
    """Build the harness' own task over a local file; only the place of its data is changed."""
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


def tokens_hash(tokens: Sequence[int]) -> str:
    """Shorten a list of token ids to 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(map(str, tokens)).encode()).hexdigest()[:16]
