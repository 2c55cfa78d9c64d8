"""`--config`: the options of a run from a TOML file, or from the run.json of an earlier run.

A key is an option's name, with dashes or underscores; a list stands for values joined by commas. What the command line
gives as well wins. Paths are as on the command line: relative to where the command is run. For `run`, a file may list
several runs: see `grid`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lowmem_layers.cli import grid
from lowmem_layers.cli.options import OUTPUT, GroupedOption
from lowmem_layers.errors import UsageError, did_you_mean

_RUN_ONLY = ("out", "display", "all_rows", "ray", "mix_devices")  # options that plan lacks: one file serves both


def config_option(command: Any) -> Any:
    """Add --config to a command that takes the options of a study."""
    words = "Take options from this file (max-removed = 2), or from a run.json. Options given beside it win."
    if command.__name__ == "run":
        words += " A file with [grid] or [[runs]] lists several runs, which are made one after another."
    return click.option(
        "--config",
        cls=GroupedOption,
        heading=OUTPUT,
        metavar="FILE.toml",
        help=words,
        is_eager=True,
        expose_value=False,
        callback=_load,
    )(command)


def _load(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Make the file's options the command's defaults, which click types and checks as if they had been passed."""
    if value is None or ctx.resilient_parsing:
        return
    known = {each.name: each for each in ctx.command.params if each.name is not None and each.name != "config"}
    path, options = Path(value), _read(Path(value))
    lists = {name: options.pop(name) for name in grid.LISTS if name in options}
    ctx.default_map = {**(ctx.default_map or {}), **read_options(path, options, known)}
    runs = grid.varied(path, lists)
    if runs is None:
        return
    if ctx.command.name != "run":
        raise UsageError(f"{path} lists several runs", f"{ctx.command.name} takes the options of one run")
    ctx.meta[grid.__name__] = path, [read_options(path, run, known) for run in runs]


def read_options(path: Path, options: Mapping[str, Any], known: Mapping[str, click.Parameter]) -> dict[str, Any]:
    """Check options from a file, by the names that a command knows them by.

    Raises:
        UsageError: there is a key that is no option or a value that no option takes.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name == "cache" and isinstance(value, bool):  # run.json's name for what is --no-cache on the command line
            name, value = "no_cache", not value
        if name in _RUN_ONLY and name not in known:
            continue
        if name not in known:
            spelled = [each.replace("_", "-") for each in known]
            hint = f"{did_you_mean(key.replace('_', '-'), spelled)}keys are the options' names: {', '.join(spelled)}"
            raise UsageError(f"{path}: there is no option {key!r}", hint)
        is_flag = isinstance(known[name], click.Option) and getattr(known[name], "is_flag", False)
        if is_flag != isinstance(value, bool):
            what = "true or false" if is_flag else "a text, a number or a list"
            raise UsageError(f"{path}: {key} = {json.dumps(value, default=str)}", f"{key} takes {what}")
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if not isinstance(value, str | int | float):
            raise UsageError(f"{path}: {key} is a {type(value).__name__}", f"{key} takes a text, a number or a list")
        found[name] = value
    return found


def _read(path: Path) -> dict[str, Any]:
    """Read the options in a file: a TOML file's keys, or those that were passed to the run of a run.json.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}: {reason}", "--config takes a TOML file or a run.json") from error
    try:
        if path.suffix.lower() != ".json":
            return tomllib.loads(text)
        passed = json.loads(text)["spec"]["passed"]
        if not isinstance(passed, dict):
            raise TypeError
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}", 'write lines such as tasks = ["arc_easy", "piqa"]') from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not the run.json of a run", "--config takes a TOML file or a run.json") from error
    return passed
