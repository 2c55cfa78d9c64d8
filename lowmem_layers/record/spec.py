"""What is to be studied: every option of a run, as passed and as resolved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lowmem_layers.errors import UsageError, did_you_mean
from lowmem_layers.game.uncertainty.stopping import parse_statement
from lowmem_layers.model.spec import EMBEDDED_MODEL
from lowmem_layers.tasks.encode import Bos
from lowmem_layers.tasks.metrics import VALUES

QUANTISATIONS = ("none", "4bit", "8bit")
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
OFFLOADS = ("auto", "none", "cpu", "disk")
BOS = ("auto", "none", "always")
PLAYERS = ("sublayer", "attention", "ffn", "decoder-layer")
COALITIONS = ("windows", "permutations", "all")
PAPER_TASKS = ("boolq", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa")

_DEFAULTS: dict[str, Any] = {
    "model": EMBEDDED_MODEL,
    "quant": "none",
    "tasks": ("quick",),
    "bos": "auto",
    "max_removed": 4,
    "players": "sublayer",
    "coalitions": "windows",
    "device": "auto",
    "offload": "auto",
    "window": 512,
    "stride": 256,
    "seed": 0,
}
# The protocol of the paper's public code: the first 1,000 items, no BOS token, windows of up to four.
PRESETS: dict[str, dict[str, Any]] = {"paper": {"tasks": PAPER_TASKS, "limit": 1000, "bos": "none", "max_removed": 4}}

# Options that change no number of the record: where weights live and how much of them, and how it is looked at.
_PLACEMENT = ("device", "offload", "max_gpu_memory", "max_cpu_memory", "cache", "threads")
# Options that came later: named only where they are not as they always were, so that earlier records stay themselves.
_UNLESS_USUAL = {"players": "sublayer", "coalitions": "windows", "permutations": None}
_NOT_IDENTITY = frozenset((*_PLACEMENT, "preset", "value", "data_dir", "fewshot_file"))


@dataclass(frozen=True)
class StudySpec:
    """Options of one run; None means "not given" and is filled in by `resolved`.

    Units: `max_gpu_memory` and `max_cpu_memory` are bytes.
    """

    model: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    quant: str | None = None
    requantize: bool = False
    dtype: str | None = None
    tasks: tuple[str, ...] | None = None
    data_dir: str | None = None
    limit: int | None = None
    fewshot: int | None = None
    fewshot_file: str | None = None
    window: int | None = None
    stride: int | None = None
    bos: Bos | None = None
    max_removed: int | None = None
    players: str | None = None
    coalitions: str | None = None
    permutations: int | None = None
    value: str | None = None
    until: str | None = None
    device: str | None = None
    offload: str | None = None
    max_gpu_memory: int | None = None
    max_cpu_memory: int | None = None
    cache: bool = True
    threads: int | None = None
    seed: int | None = None
    preset: str | None = None

    def resolved(self) -> StudySpec:
        """Fill in what was not given: from the preset first, then from the defaults.

        Raises:
            UsageError: a value is not one of those an option takes.
        """
        one_of("--preset", self.preset, tuple(PRESETS))
        filled: dict[str, Any] = {}
        for source in (PRESETS.get(self.preset or "", {}), _DEFAULTS):
            filled |= {name: value for name, value in source.items() if name not in filled}
        spec = replace(self, **{name: value for name, value in filled.items() if getattr(self, name) is None})
        _check(spec)
        _check_game(self)
        return spec

    def to_json(self) -> dict[str, Any]:
        """Give the options as JSON takes them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def identity(self) -> dict[str, Any]:
        """Give the resolved options that decide the numbers of a record."""
        stored = self.resolved().to_json()
        usual = {name for name, value in _UNLESS_USUAL.items() if stored[name] == value}
        found = {name: value for name, value in stored.items() if name not in _NOT_IDENTITY | usual}
        return found | {"value": stored["value"]} if stored["until"] is not None else found  # it decides when to stop


def spec_from_json(stored: Mapping[str, Any]) -> StudySpec:
    """Read `to_json` back; options this version does not know are left out."""
    known = {field.name for field in fields(StudySpec)}
    values = {name: value for name, value in stored.items() if name in known}
    if isinstance(values.get("tasks"), list):
        values["tasks"] = tuple(values["tasks"])
    return StudySpec(**values)


def default_folder(spec: StudySpec, root: Path = Path("runs")) -> Path:
    """Name the run folder after the spec, so that the same command finds the same folder."""
    resolved = spec.resolved()
    model = _slug(Path(resolved.model or EMBEDDED_MODEL).name)
    names = [_slug(Path(name).stem if name.endswith((".toml", ".yaml")) else name) for name in resolved.tasks or ()]
    tasks = names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")
    document = json.dumps({**spec.identity(), "data_dir": resolved.data_dir, "device": resolved.device}, sort_keys=True)
    digest = hashlib.sha256(document.encode()).hexdigest()[:6]
    return root / f"{model}-{resolved.quant}-{tasks}-{digest}"


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> None:
    """Refuse a value that is not allowed, and name the nearest one that is.

    Raises:
        UsageError: `value` is given and not among `allowed`.
    """
    if value is None or value in allowed:
        return
    hint = f"{did_you_mean(value, allowed)}{option} takes {', '.join(allowed)}"
    raise UsageError(f"{option} {value!r} is not known", hint)


def _check(spec: StudySpec) -> None:
    one_of("--quant", spec.quant, QUANTISATIONS)
    one_of("--dtype", spec.dtype, DTYPES)
    one_of("--offload", spec.offload, OFFLOADS)
    one_of("--bos", spec.bos, BOS)
    one_of("--value", spec.value, VALUES)
    one_of("--device", spec.device, DEVICES)
    for option, value, least in (
        ("--limit", spec.limit, 1),
        ("--max-removed", spec.max_removed, 0),
        ("--permutations", spec.permutations, 2),
        ("--fewshot", spec.fewshot, 0),
        ("--threads", spec.threads, 1),
        ("--window", spec.window, 2),
        ("--stride", spec.stride, 1),
        ("--max-gpu-memory", spec.max_gpu_memory, 1),
        ("--max-cpu-memory", spec.max_cpu_memory, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{option} {value} is too small", f"{option} takes a number of at least {least}")
    if not spec.tasks or not all(spec.tasks):
        raise UsageError("no task is named", "--tasks takes names joined by commas, for example --tasks quick")
    if len(set(spec.tasks)) < len(spec.tasks):
        raise UsageError(f"a task is named twice: {','.join(spec.tasks)}", "name each task once")


def _check_game(passed: StudySpec) -> None:
    """Refuse options that contradict each other."""
    one_of("--coalitions", passed.coalitions, COALITIONS)
    kind = passed.coalitions or "windows"
    if passed.permutations is not None and kind != "permutations":
        raise UsageError("--permutations counts removal orders, and none are drawn", "add --coalitions permutations")
    if passed.max_removed not in (None, _DEFAULTS["max_removed"]) and kind != "windows":
        raise UsageError("--max-removed limits windows, and none are removed", f"leave it out with --coalitions {kind}")
    if passed.until is None:
        return
    parse_statement(passed.until)
    if kind == "permutations":
        raise UsageError(
            "--until decides by the items' noise; removal orders have noise of their own",
            "leave --until out, or use --coalitions windows",
        )


def _slug(name: str) -> str:
    kept = "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in name.lower())
    return kept.strip("-.")[:40] or "x"
