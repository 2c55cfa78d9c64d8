"""`run --config grid.toml`: several runs from one file, each with options and a folder of its own.

    limit = 100                            # options of all runs
    workers = 2                            # all runs on the same workers, one run after another

    [grid]                                 # every combination is a run: 2 models x 2 quantisations x 2 sets of tasks
    model = ["models/a", "models/b"]
    quant = ["4bit", "8bit"]
    tasks = ["piqa", ["boolq", "arc_easy"]]

    [[runs]]                               # one more run
    model = "models/c"
    max-removed = 2

The keys are options of the command. `out` names the folder in which the runs' own folders lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lowmem_layers.cli.options import spec_from
from lowmem_layers.errors import LowmemLayersError, UsageError
from lowmem_layers.record.spec import Specification, default_folder

LISTS = ("grid", "runs")  # keys that are no options
_FOR_ALL = ("workers", "ray", "mix_devices", "out", "display", "all_rows")
_EXAMPLE = 'write [grid] and lines such as quant = ["4bit", "8bit"], or [[runs]] and options for each run'


@dataclass(frozen=True)
class Wanted:
    """A run that was asked for, and its place among all of them (None: it is the only one)."""

    spec: Specification
    folder: Path
    place: str | None = None

    @property
    def title(self) -> str:
        """Name the run, for the display."""
        name = f"{Path(self.spec.model).name} · {self.spec.quant} · {','.join(self.spec.tasks)}"
        return name if self.place is None else f"{self.place} · {name}"


def varied(path: Path, lists: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """List what each run of a file has besides the options of all; None where the file is one run's.

    Raises:
        UsageError: the lists are not as they are documented.
    """
    if not lists:
        return None
    grid, runs = lists.get("grid", {}), lists.get("runs", [])
    if not isinstance(grid, dict) or not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise UsageError(f"{path}: grid is a table and runs a list of tables", _EXAMPLE)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: [grid] {name} is no list of values", _EXAMPLE)
    if not grid and not runs:
        raise UsageError(f"{path} lists no run", _EXAMPLE)
    combined = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())] if grid else []
    return combined + runs


def wanted_runs(ctx: click.Context, options: Mapping[str, Any], out: str | None) -> list[Wanted]:
    """Resolve the options of each run that the command asks for, before the first one begins.

    Raises:
        UsageError: an option of a run is wrong, is given on the command line as well, or makes two runs the same.
    """
    lists = ctx.meta.get(__name__)
    if lists is None:
        spec = spec_from(dict(options)).resolved()
        return [Wanted(spec, Path(out) if out else default_folder(spec))]
    path, each_run = lists
    root = Path(out) if out else Path("runs")
    found: list[Wanted] = []
    for number, run in enumerate(each_run, start=1):
        place = f"run {number} of {len(each_run)}"
        try:
            spec = spec_from({**options, **_converted(ctx, run)}).resolved()
        except (LowmemLayersError, click.UsageError) as error:
            said = error.message if isinstance(error, LowmemLayersError) else error.format_message()
            raise UsageError(f"{path}, {place}: {said}", getattr(error, "hint", "")) from error
        found.append(Wanted(spec, default_folder(spec, root), place))
    # Two runs in one folder would be the same: what differs between them changes no number.
    for place, earlier in _repeated([wanted.folder for wanted in found]):
        raise UsageError(
            f"{path}: runs {earlier + 1} and {place + 1} have the same options, as far as they change numbers",
            "leave one of them out",
        )
    return found


def _converted(ctx: click.Context, run: Mapping[str, Any]) -> dict[str, Any]:
    """Read the values of a run's options as the command line would.

    Raises:
        UsageError: an option is for all runs together, or was given on the command line as well.
        click.UsageError: an option does not take its value.
    """
    known = {each.name: each for each in ctx.command.params if each.name is not None}
    for name in run:
        spelled = name.replace("_", "-")
        if name in _FOR_ALL:
            raise UsageError(f"{spelled} is for all runs together", f"write {spelled} = … above [grid] and [[runs]]")
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise UsageError(f"{spelled} is given on the command line, too", f"leave --{spelled} out")
    return {name: known[name].type_cast_value(ctx, value) for name, value in run.items()}


def _repeated(folders: Sequence[Path]) -> Iterable[tuple[int, int]]:
    """Name the places that hold what an earlier place holds."""
    return ((place, folders.index(each)) for place, each in enumerate(folders) if folders.index(each) < place)
