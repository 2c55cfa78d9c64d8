"""How a run was made: in words, as facts, as commands to resume and repeat it, and as an entry to cite."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lowmem_layers.findings.run import Run
from lowmem_layers.findings.words import counted
from lowmem_layers.record.manifest import Manifest
from lowmem_layers.record.spec import StudySpec

_LONGEST_FACT = 200  # signs; a list of options may be longer than a reader's patience
_ESTIMATES = {
    "neighbourhood": "The neighbourhood estimate of a {player} is the mean loss when it is {done}: from the full "
    "model, and from models in which a window of {player}s next to it already is.",
    "permutation": "The permutation estimate of a {player} is the mean loss when its turn comes to be {done}, "
    "over random orders.",
    "shapley": "The Shapley value of a {player} is the mean loss when it is {done}, over all sets of other {player}s; "
    "each size of set has the same weight.",
}
STUDY = """@inproceedings{zhang2024layerimportance,
  title  = {Investigating Layer Importance in Large Language Models},
  author = {Yang Zhang and Yanfei Dong and Kenji Kawaguchi},
  year   = {2024},
  note   = {arXiv:2409.14381}
}"""


def summary(manifest: Manifest, tasks: Sequence[str], n_items: int) -> str:
    """Say in words what was measured, and what the two estimates mean."""
    design, n_coalitions, done = manifest.design, len(manifest.plan.coalitions) - 1, manifest.change.words
    player = "group" if any(each.is_group for each in design.players) else "sublayer"
    # 1) what was removed
    largest = max(map(len, design.of_players))
    who = f"of {len(design.players)} {player}s " if design.grouping is not None else ""
    if n_coalitions == 0:
        removed = ""
    elif design.coalitions == "all":
        removed = f", and with each of the {n_coalitions:,} sets {who or f'of {player}s '}{done}"
    elif design.coalitions == "permutations":
        removed = (
            f", and with each of {n_coalitions:,} sets {who or f'of {player}s '}{done}, along {len(design.orders)} "
            f"random orders, each down to chance level (after {min(design.cuts)} to {max(design.cuts)} of them)"
        )
    elif largest == 1:
        removed = f", and with each of {n_coalitions:,} {player}s {done}"
    else:
        removed = f", and with each of {n_coalitions:,} windows of 1 to {largest} neighbouring {player}s {who}{done}"
    # 2) what the numbers mean; without windows of two there is one number, not two
    meaning = _ESTIMATES[design.estimator].format(player=player, done=done)
    if design.coalitions == "windows" and largest == 1:
        meaning = f"The estimate of a {player} is its ablation drop."
    meaning += f" The ablation drop of a {player} is the loss when it alone is {done}."
    return (
        f"{manifest.model.id} in {manifest.model.dtype} (quantisation {manifest.resolved.quant}) "
        f"was scored on {counted(n_items, 'item')} of {', '.join(tasks)}: complete{removed}."
        f"{' ' + meaning if removed else ''}"
    )


def facts(manifest: Manifest) -> list[list[str]]:
    """List everything that is needed to make the run again: name and value."""
    found = {
        "status": manifest.status,
        "created": manifest.created,
        **{f"model: {name}": value for name, value in manifest.model.to_json().items()},
        **{f"option: {name}": value for name, value in manifest.resolved.to_json().items() if value is not None},
        **{f"data: {task.task}": task.fingerprint for task in manifest.data},
        **{f"version: {name}": value for name, value in manifest.versions.items()},
    }
    rows = []
    for name, value in found.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        rows.append([name, text if len(text) <= _LONGEST_FACT else text[:_LONGEST_FACT] + "…"])
    return rows


def commands(run: Run) -> list[tuple[str, str]]:
    """Give the commands that resume the run, repeat it elsewhere, and read it: what each does, and the command."""
    passed = run_command(run.manifest.passed)
    folder = shlex.quote(run.folder.name)
    made = f"{passed} --out {folder}"
    first = ("Resume it, in the folder that holds it", made)
    return [
        *([first] if run.is_unfinished else []),
        ("Repeat it: the same options, a new folder", f"{passed} --out {shlex.quote(run.folder.name + '-again')}"),
        ("Write this page, its figures and tables again", f"lowmem-layers report {folder}"),
        ("Read the numbers", f"lowmem-layers importance {folder} --format csv"),
    ]


def run_command(passed: StudySpec) -> str:
    """Write the options as the command line that passes them."""
    words = ["lowmem-layers", "run"]
    for name, value in passed.to_json().items():
        flag = f"--{name.replace('_', '-')}"
        if name == "cache":
            words += [] if value else ["--no-cache"]
        elif isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [flag, ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return shlex.join(words)


def citation(manifest: Manifest) -> str:
    """Write BibTeX entries: of the study whose method this is, and of the program in its version."""
    version = manifest.versions.get("lowmem-layers") or manifest.versions.get("lowmem_layers") or ""
    program = f"""@software{{lowmemlayers,
  title   = {{lowmem-layers}},
  author  = {{{{The lowmem-layers developers}}}},
  version = {{{version}}},
  year    = {{{manifest.created[:4]}}}
}}"""
    return f"{STUDY}\n\n{program}"
