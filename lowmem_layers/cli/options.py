"""The options of a study, shared by the commands that take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lowmem_layers.record.spec import StudySpec


class Size(click.ParamType):
    """A size in bytes, such as 8GiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the size."""
        from lowmem_layers.model.spec import parse_bytes

        return value if isinstance(value, int) else parse_bytes(str(value))


_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--model", metavar="ID_OR_FOLDER", help="Hub id, folder or GGUF file. [default: the embedded SmolLM2-135M]"
    ),
    click.option("--quant", metavar="none|4bit|8bit", help="Quantise the decoder layers' weights. [default: none]"),
    click.option(
        "--dtype", metavar="float32|bfloat16|float16", help="Compute in. [default: what the device is fast at]"
    ),
    click.option(
        "--tasks", metavar="NAMES", help="Task names joined by commas; see lowmem-layers tasks. [default: quick]"
    ),
    click.option("--data-dir", metavar="FOLDER", help="Folder with TASK.jsonl files, used instead of the hub."),
    click.option("--limit", type=int, metavar="N", help="Take the first N items of each task. [default: all]"),
    click.option(
        "--max-removed", type=int, metavar="L", help="Largest window removed; 0: the full model only. [default: 4]"
    ),
    click.option(
        "--players",
        metavar="sublayer|attention|ffn|decoder-layer|GROUPS",
        help="Who plays; groups are written a=attn.0+ffn.0,b=ffn.1. [default: sublayer]",
    ),
    click.option(
        "--coalitions",
        metavar="windows|permutations|all",
        help="Remove windows of neighbours (the paper), walk down random removal orders to chance (unbiased Shapley "
        "values), or measure every set of at most 14 players (exact). [default: windows]",
    ),
    click.option(
        "--permutations", type=int, metavar="M", help="Removal orders of --coalitions permutations. [default: 32]"
    ),
    click.option(
        "--preset", metavar="paper", help="The paper's protocol: six tasks, first 1,000 items, no BOS, L = 4."
    ),
    click.option(
        "--value",
        metavar="NAME",
        help="What a sublayer is worth something for: acc, acc_norm, loglikelihood, "
        "margin, probability, nll_per_byte. [default: each task's own metric]",
    ),
    click.option(
        "--until", metavar="top3|top=K|rank|ci=X", help="Take items in random order and stop when this holds at 95 %."
    ),
    click.option(
        "--fewshot", type=int, metavar="K", help="Examples before each item. [default: the task's own number]"
    ),
    click.option("--fewshot-file", metavar="FILE", help="Take those examples from here. [default: the training data]"),
    click.option("--window", type=int, metavar="TOKENS", help="Of text:FILE, an item sees so much. [default: 512]"),
    click.option("--stride", type=int, metavar="TOKENS", help="Of text:FILE, an item scores so much. [default: 256]"),
    click.option("--bos", metavar="auto|none|always", help="Begin with the BOS token. [default: auto]"),
    click.option("--device", metavar="auto|cpu|cuda", help="Compute on. [default: auto]"),
    click.option("--offload", metavar="auto|none|cpu|disk", help="Where packed weights live. [default: auto]"),
    click.option("--max-gpu-memory", type=Size(), metavar="SIZE", help="Use at most this much GPU memory, e.g. 8GiB."),
    click.option("--max-cpu-memory", type=Size(), metavar="SIZE", help="Use at most this much host memory."),
    click.option("--threads", type=int, metavar="N", help="CPU threads. [default: torch's own]"),
    click.option("--revision", metavar="REV", help="Revision of a model on the hub."),
    click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model."),
    click.option("--requantize", is_flag=True, help="Quantise anew what is quantised at another width."),
    click.option("--no-cache", is_flag=True, help="Do not keep packed weights on disk."),
    click.option("--seed", type=int, metavar="N", help="Seed of whatever is random. [default: 0]"),
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a study to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_from(options: dict[str, Any]) -> StudySpec:
    """Make the spec of what was passed."""
    from lowmem_layers.record.spec import StudySpec

    tasks = options.pop("tasks")
    if tasks is not None:
        tasks = tuple(name.strip() for name in tasks.split(",") if name.strip())
    return StudySpec(tasks=tasks, cache=not options.pop("no_cache"), **options)
