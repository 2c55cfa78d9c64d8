"""The options of a run, as they were passed and as what they mean.

`StudySpec` holds the options as passed: any of them may be missing. `Specification` holds their meaning: nothing is
missing, and every choice is one of the values that are allowed. `StudySpec.resolved` leads from one to the other, once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, overload

from lowmem_layers.errors import UsageError, did_you_mean
from lowmem_layers.model.change import parse_change
from lowmem_layers.model.spec import EMBEDDED_MODEL, DeviceName, DtypeName, Offload, Quant
from lowmem_layers.record.files import check_text
from lowmem_layers.record.limits import check_numbers

if TYPE_CHECKING:  # these rooms need numpy, and `--help` reads this module without waiting for it
    from lowmem_layers.game.players.design import CoalitionsKind
    from lowmem_layers.game.players.groups import PlayersOption
    from lowmem_layers.tasks.encode import Bos
    from lowmem_layers.tasks.metrics import Value

Choice = TypeVar("Choice", bound=str)
Given = TypeVar("Given")

QUANTISATIONS: tuple[Quant, ...] = get_args(Quant)
DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16", "float16")
DEVICES: tuple[DeviceName, ...] = get_args(DeviceName)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
BOS: tuple[Bos, ...] = ("auto", "none", "always")
COALITIONS: tuple[CoalitionsKind, ...] = ("windows", "permutations", "all")
PLAYERS: tuple[PlayersOption, ...] = ("sublayer", "attention", "ffn", "decoder-layer")
PAPER_TASKS = ("boolq", "arc_easy", "arc_challenge", "piqa", "winogrande", "openbookqa")
N_ORDERS = 32  # removal orders, where --permutations is not given
MAX_REMOVED = 4  # the largest window, where --max-removed is not given; the paper's

# Options whose meaning is what was passed; None is a meaning of theirs.
_AS_PASSED = (
    "revision", "trust_remote_code", "requantize", "data_dir", "limit", "fewshot", "fewshot_file", "chat_template",
    "include_path", "trust_task_code", "until", "max_gpu_memory", "max_cpu_memory", "cache", "threads",
)  # fmt: skip
# Options that change no number of the record: where weights live and how much of them, and how the record is looked at.
_PLACEMENT = ("device", "offload", "max_gpu_memory", "max_cpu_memory", "cache", "threads")
_NOT_IDENTITY = frozenset(
    (*_PLACEMENT, "preset", "value", "data_dir", "fewshot_file", "include_path", "trust_task_code")
)
# Options that came after the first release. They enter the identity only where they differ from what was usual before
# them, so that earlier records keep their identity; earlier records do not name them.
LATER_OPTIONS: dict[str, Any] = {
    "players": "sublayer",
    "coalitions": "windows",
    "permutations": None,
    "chat_template": None,
    "change": "remove",
}


@dataclass(frozen=True)
class StudySpec:
    """Options of one run as they are passed; None means "not given".

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
    bos: str | None = None
    chat_template: str | None = None
    include_path: str | None = None
    trust_task_code: bool = False
    max_removed: int | None = None
    change: str | None = None
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

    def resolved(self) -> Specification:
        """Say what the options mean: an option that is not given has the preset's value, or else its default.

        Raises:
            UsageError: an option has a value that it does not take, or two options contradict each other.
        """
        # 1) the preset fills in what was not given
        preset = PRESETS[one_of("--preset", self.preset, tuple(PRESETS))] if self.preset else StudySpec()
        missing = [field.name for field in fields(self) if getattr(self, field.name) is None]
        given = replace(self, **{name: getattr(preset, name) for name in missing})
        # 2) what cannot be meant is refused
        tasks = _or(given.tasks, ("quick",))
        coalitions = one_of("--coalitions", _or(given.coalitions, "windows"), COALITIONS)
        _check(self, given, tasks, coalitions)
        value = None
        if given.value is not None:
            from lowmem_layers.tasks.metrics import VALUES  # here, since it needs numpy

            value = one_of("--value", given.value, VALUES)
        # 3) the defaults fill in the rest
        return Specification(
            passed=self,
            **{name: getattr(given, name) for name in _AS_PASSED},
            model=_or(given.model, EMBEDDED_MODEL),
            quant=one_of("--quant", _or(given.quant, "none"), QUANTISATIONS),
            dtype=_or(one_of("--dtype", given.dtype, DTYPES), "auto"),
            tasks=tasks,
            window=_or(given.window, 512),
            stride=_or(given.stride, 256),
            bos=one_of("--bos", _or(given.bos, "auto"), BOS),
            max_removed=_or(given.max_removed, MAX_REMOVED),
            change=parse_change(_or(given.change, "remove")).name,
            players=_or(given.players, "sublayer"),
            coalitions=coalitions,
            permutations=_or(given.permutations, N_ORDERS) if coalitions == "permutations" else None,
            value=value,
            device=one_of("--device", _or(given.device, "auto"), DEVICES),
            offload=one_of("--offload", _or(given.offload, "auto"), OFFLOADS),
            seed=_or(given.seed, 0),
        )

    def to_json(self) -> dict[str, Any]:
        """Give the options that were passed, as JSON takes them."""
        passed = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in passed.items() if value is not None}


@dataclass(frozen=True)
class Specification:
    """What the options of one run mean.

    None is a meaning here, too: `limit` takes all items, `fewshot` each task's own number of examples, `value` each
    task's own metric; `until` never stops early; no `permutations` are drawn; the memory has no limit; `threads` are
    torch's choice. `passed` are the options that this was made of.

    Units: `max_gpu_memory` and `max_cpu_memory` are bytes; `window` and `stride` tokens.
    """

    passed: StudySpec
    model: str
    revision: str | None
    trust_remote_code: bool
    quant: Quant
    requantize: bool
    dtype: DtypeName
    tasks: tuple[str, ...]
    data_dir: str | None
    limit: int | None
    fewshot: int | None
    fewshot_file: str | None
    window: int
    stride: int
    bos: Bos
    chat_template: str | None
    include_path: str | None
    trust_task_code: bool
    max_removed: int
    change: str
    players: str
    coalitions: CoalitionsKind
    permutations: int | None
    value: Value | None
    until: str | None
    device: DeviceName
    offload: Offload
    max_gpu_memory: int | None
    max_cpu_memory: int | None
    cache: bool
    threads: int | None
    seed: int

    def resolved(self) -> Specification:
        """Give this specification itself, so that whoever takes options takes resolved ones as well."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Give every option as JSON takes it; `dtype` is null where the device decides."""
        names = [field.name for field in fields(StudySpec)]
        found = {name: _plain(getattr(self, name)) for name in names if name != "preset"}
        return found | {"dtype": None if self.dtype == "auto" else self.dtype, "preset": self.passed.preset}

    def identity(self) -> dict[str, Any]:
        """Give the options that decide the numbers of a record, as JSON takes them."""
        stored = self.to_json() | {"permutations": self.passed.permutations}
        usual = {name for name, value in LATER_OPTIONS.items() if stored[name] == value}
        found = {name: value for name, value in stored.items() if name not in _NOT_IDENTITY | usual}
        # The value by which a run decides when to stop decides which items it holds.
        return found | {"value": stored["value"]} if self.until is not None else found


_PAPER = StudySpec(tasks=PAPER_TASKS, limit=1000, bos="none", max_removed=MAX_REMOVED)  # as in its public code
PRESETS = {"paper": _PAPER, "paper-code": replace(_PAPER, max_removed=3)}  # 3 is the code's default


def default_folder(spec: StudySpec | Specification, root: Path = Path("runs")) -> Path:
    """Name the run folder after the options, so that the same command finds the same folder."""
    meant = spec.resolved()
    names = [_slug(Path(name).stem if name.endswith((".toml", ".yaml")) else name) for name in meant.tasks]
    tasks = names[0] + (f"+{len(names) - 1}" if len(names) > 1 else "")
    where = {"data_dir": meant.data_dir, "device": meant.device, **meant.identity()}
    if meant.include_path is not None:  # named only where it is given, so that earlier folders keep their names
        where["include_path"] = meant.include_path
    digest = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:6]
    return root / f"{_slug(Path(meant.model).name)}-{meant.quant}-{tasks}-{digest}"


@overload
def one_of(option: str, value: str, allowed: Sequence[Choice]) -> Choice: ...
@overload
def one_of(option: str, value: str | None, allowed: Sequence[Choice]) -> Choice | None: ...
def one_of(option: str, value: str | None, allowed: Sequence[Choice]) -> Choice | None:
    """Give the allowed choice that `value` names; None stays None ("not given").

    Raises:
        UsageError: `value` is given and is not among `allowed`; the nearest choice is named.
    """
    if value is None:
        return None
    for choice in allowed:
        if choice == value:
            return choice
    hint = f"{did_you_mean(value, allowed)}{option} takes {', '.join(allowed)}"
    raise UsageError(f"{option} {value!r} is not known", hint)


def _or(given: Given | None, default: Given) -> Given:
    return default if given is None else given


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(passed: StudySpec, given: StudySpec, tasks: Sequence[str], coalitions: CoalitionsKind) -> None:
    """Refuse what no file can hold, numbers out of range, tasks named twice, options that contradict each other."""
    for field in fields(passed):
        texts = getattr(passed, field.name)
        for text in texts if isinstance(texts, tuple) else (texts,):
            check_text("--" + field.name.replace("_", "-"), text)
    check_numbers(given, draws=given.until is not None or coalitions == "permutations")
    if not tasks or not all(tasks):
        raise UsageError("no task is named", "--tasks takes names joined by commas, for example --tasks quick")
    if len(set(tasks)) < len(tasks):
        raise UsageError(f"a task is named twice: {','.join(tasks)}", "name each task once")
    if passed.permutations is not None and coalitions != "permutations":
        raise UsageError("--permutations counts removal orders, and none are drawn", "add --coalitions permutations")
    if passed.max_removed not in (None, MAX_REMOVED) and coalitions != "windows":
        hint = f"leave it out with --coalitions {coalitions}"
        raise UsageError("--max-removed limits windows, and none are removed", hint)
    if passed.until is None:
        return
    from lowmem_layers.game.uncertainty.stopping import parse_statement  # here, since it needs numpy

    parse_statement(passed.until)
    if coalitions == "permutations":
        why = "--until decides by the items' noise; removal orders have noise of their own"
        raise UsageError(why, "leave --until out, or use --coalitions windows")


def _slug(name: str) -> str:
    kept = "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in name.lower()).strip("-.")[:40]
    return re.sub(r"^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", r"x-\1", kept or "x")  # Windows takes them for devices
