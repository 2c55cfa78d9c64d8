"""The options of a study, in groups, shared by the commands that take them.

Which values an option takes and what it means when it is left out come from `record.spec`, which owns these facts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from lowmem_layers.model.change import CHANGES
from lowmem_layers.record.spec import (
    BOS,
    COALITIONS,
    DEVICES,
    DTYPES,
    N_ORDERS,
    OFFLOADS,
    PLAYERS,
    PRESETS,
    QUANTISATIONS,
    StudySpec,
)
from lowmem_layers.record.unused import check_used

MODEL, TASK, REMOVED = "Model", "Task", "What is removed and estimated"
MEMORY, OUTPUT = "Memory and device", "Output"
# Listed here too because the modules that own these names need numpy, which `--help` does not wait for; tests compare.
VALUE_NAMES = "acc, acc_norm, loglikelihood, margin, probability, kl, nll_per_byte, loglikelihood_per_char or greedy"
ESTIMATOR_NAMES = "neighbourhood, stratified, ablation, shapley or permutation"
SIZE_WORDS = (
    "Effect to resolve, in the unit of the value: 0.01 is one point of accuracy; a negative one is a gain. "
    "[default: 0.01; 0.05 nats]"
)

_DEFAULTS = StudySpec().resolved()
_COLUMN = 30  # where the words begin, alike under all headings


class GroupedOption(click.Option):
    """An option that stands under a heading in its command's help."""

    def __init__(self, *args: Any, heading: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.heading = heading


class GroupedCommand(click.Command):
    """A command whose help lists options under headings; those without one (`--help`) are under the last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list of options for each heading, in the order in which headings first occur."""
        lists: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                lists.setdefault(getattr(param, "heading", OUTPUT), []).append(record)
        for heading, records in lists.items():
            with formatter.section(heading):
                formatter.write_dl([(names.ljust(_COLUMN), words) for names, words in records], col_max=_COLUMN)


class Size(click.ParamType):
    """A size in bytes, such as 8GiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the size."""
        from lowmem_layers.model.spec import parse_bytes

        return value if isinstance(value, int) else parse_bytes(str(value))


def _option(heading: str, flag: str, words: str, metavar: str | None = None, **settings: Any) -> Callable[..., Any]:
    """Make an option; the help ends with its default where the specification has one that is not named in `words`."""
    default = getattr(_DEFAULTS, flag.removeprefix("--").replace("-", "_"), None)
    if default is not None and not isinstance(default, bool) and "[default:" not in words:
        words = f"{words} [default: {','.join(default) if isinstance(default, tuple) else default}]"
    if metavar and "|" in metavar:  # what a shell completes
        choices = [each for each in metavar.split("|") if not each.isupper() and "=" not in each]
        settings["shell_complete"] = lambda ctx, param, begun: [each for each in choices if each.startswith(begun)]
    return click.option(flag, cls=GroupedOption, heading=heading, metavar=metavar, help=words, **settings)


def _flag(heading: str, flag: str, words: str) -> Callable[..., Any]:
    return _option(heading, flag, words, is_flag=True)


_OPTIONS: tuple[Callable[..., Any], ...] = (
    # Model
    _option(
        MODEL,
        "--model",
        f"Hub id, folder or GGUF file of a language model. [default: the embedded {_DEFAULTS.model}]",
        "ID_OR_FOLDER",
    ),
    _option(MODEL, "--revision", "Branch, tag or commit of a model on the Hub.", "REV"),
    _flag(MODEL, "--trust-remote-code", "Run the Python code that comes with the model."),
    _option(MODEL, "--quant", "Quantise the weights of the decoder layers.", "|".join(QUANTISATIONS)),
    _flag(MODEL, "--requantize", "If the checkpoint is quantised already: unpack it, then do what --quant says."),
    _option(
        MODEL,
        "--dtype",
        "Number type of the computation. [default: bfloat16 where the device is fast at it, else float32]",
        "|".join(DTYPES),
    ),
    # Task
    _option(TASK, "--tasks", "Task names, joined by commas. The command tasks lists them.", "NAMES"),
    _option(
        TASK,
        "--preset",
        "Set the paper's protocol: six tasks, the first 1,000 items of each, no BOS token, windows of up to 4; or of "
        "up to 3, with tables rounded as in the authors' code.",
        "|".join(PRESETS),
    ),
    _option(TASK, "--data-dir", "Read TASK.jsonl files in this folder instead of the Hub.", "FOLDER"),
    _option(TASK, "--limit", "Use only the first N items of each task. [default: all]", "N", type=int),
    _option(TASK, "--fewshot", "Solved examples before each item. [default: the task's own number]", "K", type=int),
    _option(TASK, "--fewshot-file", "File with these examples. [default: the task's training data]", "FILE"),
    _option(TASK, "--window", "Task text:FILE: number of tokens that the model sees at once.", "TOKENS", type=int),
    _option(TASK, "--stride", "Task text:FILE: number of these that are scored, the last ones.", "TOKENS", type=int),
    _option(TASK, "--include-path", "Folder with more task files of lm-evaluation-harness (YAML).", "FOLDER"),
    _flag(TASK, "--trust-task-code", "Run the Python code that task files of --include-path name."),
    _option(
        TASK,
        "--chat-template",
        "Ask in a chat, by the tokenizer's template or by that in FILE; the choices are the assistant's answers.",
        "[tokenizer|FILE]",
        is_flag=False,
        flag_value="tokenizer",
    ),
    _option(TASK, "--bos", "Whether a BOS token comes first; auto leaves this to the tokenizer.", "|".join(BOS)),
    # What is removed and estimated
    _option(
        REMOVED,
        "--max-removed",
        "Remove windows of 1 to L neighbouring players; 0 measures the full model only.",
        "L",
        type=int,
    ),
    _option(
        REMOVED,
        "--change",
        "What is done to sublayers instead of removing them: quantise their weights (nf4, int8, q8_0, q6_k, q5_k, "
        "q4_k, q4_0, mxfp4, q3_k, q2_k, …), put their mean output in their place, or run them twice.",
        "|".join(CHANGES),
    ),
    _option(
        REMOVED,
        "--players",
        "What is removed as one unit. GROUPS of your own are written a=attn.0+ffn.0,b=ffn.1.",
        "|".join((*PLAYERS, "GROUPS")),
    ),
    _option(
        REMOVED,
        "--coalitions",
        "What is removed together: windows of neighbours (the paper's way), growing sets along random orders, down to "
        "chance level (unbiased Shapley values), or all sets of up to 14 players (exact Shapley values).",
        "|".join(COALITIONS),
    ),
    _option(REMOVED, "--permutations", f"Number of random orders. [default: {N_ORDERS}]", "M", type=int),
    _option(REMOVED, "--value", f"Measure importance by {VALUE_NAMES}. [default: each task's own metric]", "NAME"),
    _option(
        REMOVED,
        "--until",
        "Take the items in random order and stop when this is certain at 95 %: the 3 or K most important players, all "
        "ranks, or all estimates within ±X.",
        "top3|top=K|rank|ci=X",
    ),
    _option(REMOVED, "--seed", "Seed of all random choices.", "N", type=int),
    # Memory and device
    _option(MEMORY, "--device", "Where to compute.", "|".join(DEVICES)),
    _option(
        MEMORY,
        "--offload",
        "Where the packed weights are kept: on the device (none), in the host's memory, or on disk; auto takes the "
        "first that fits.",
        "|".join(OFFLOADS),
    ),
    _option(MEMORY, "--max-gpu-memory", "Use at most this much GPU memory, for example 8GiB.", "SIZE", type=Size()),
    _option(MEMORY, "--max-cpu-memory", "Use at most this much memory of the host.", "SIZE", type=Size()),
    _option(MEMORY, "--threads", "Number of CPU threads. [default: torch's choice]", "N", type=int),
    _flag(MEMORY, "--no-cache", "Do not keep packed weights on disk for later runs."),
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a study to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


WORKERS = _option(
    MEMORY,
    "--workers",
    "Number of processes that hold the model and score at once: one for each card, or with a share of the CPU's "
    "threads each. Needs Ray: pip install lowmem-layers[ray]. Numbers do not depend on it, given the same --threads.",
    "N",
    type=int,
)
_RAY = _option(
    MEMORY,
    "--ray",
    "Work on the Ray cluster at this address (HOST:6379, or auto on its own hosts). [default: this machine]",
    "ADDRESS",
)
_MIXED = _flag(
    MEMORY,
    "--mix-devices",
    "Let workers of different devices, whose numbers differ in their last bits, share a run. Each tile then says where "
    "it was made.",
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that put a run on several workers."""
    return WORKERS(_RAY(_MIXED(command)))


def spec_from(options: dict[str, Any]) -> StudySpec:
    """Make the spec of the options that were passed.

    Raises:
        UsageError: one of them would change nothing.
    """
    tasks = options.pop("tasks")
    if tasks is not None:
        tasks = tuple(name.strip() for name in tasks.split(",") if name.strip())
    spec = StudySpec(tasks=tasks, cache=not options.pop("no_cache"), **options)
    check_used(spec)
    return spec
