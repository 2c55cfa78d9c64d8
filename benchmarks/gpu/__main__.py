"""Measure a graphics card in minutes: right, fast, within its memory, and against what one would do otherwise.

    python -m benchmarks.gpu [--minutes 9] [--only ceilings,correct,…] [--out FOLDER]

Models are random packed codes made straight from a shipped shape: no checkpoint, no packing, no network. Each section
is a list of cases; a case that fails is written down with its error, and the next one goes on. The result is
gpu.json and gpu.md in the folder, written anew after every case, so that nothing is lost when the time is up. Where a
kernel fails in such a way that CUDA gives this process no further answer, another process goes on behind that case.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu import against, cards, ceilings, company, correct, fast, memory
from benchmarks.gpu.report import markdown
from benchmarks.gpu.setting import Case, Result, Setting, forget_homes
from lowmem_layers.model.accelerators import release_cached
from lowmem_layers.model.devices import resolve_device, resolve_dtype, settle_for_models
from lowmem_layers.model.memory import is_machines_fault, is_shortage

_MOST_PROCESSES = 8  # a card that fails in every case is not asked a hundred times

# each section's share of the time; what it leaves over goes to those behind it
SECTIONS: dict[str, tuple[Callable[[Setting], Iterator[Case]], float]] = {
    "ceilings": (ceilings.cases, 0.07),
    "correct": (correct.cases, 0.20),
    "fast": (fast.cases, 0.27),
    "memory": (memory.cases, 0.20),
    "against": (against.cases, 0.18),
    "company": (company.cases, 0.06),
    "cards": (cards.cases, 0.02),
}


def main() -> None:
    """Run the sections that were asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=9.0, help="time for everything; cases begun are finished")
    options.add_argument("--only", help=f"sections, joined by commas: {', '.join(SECTIONS)}")
    options.add_argument("--device", default="cuda")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--shape", default="full", choices=["full", "tiny"], help="tiny: to try the command out")
    options.add_argument("--out", type=Path, default=Path(), help="folder of gpu.json and gpu.md")
    options.add_argument("--go-on", type=int, default=0, metavar="N", help="leave out what gpu.json has: the Nth time")
    chosen = options.parse_args()
    only = chosen.only.split(",") if chosen.only else list(SECTIONS)
    if unknown := sorted(set(only) - set(SECTIONS)):
        sys.exit(f"there is no section {', '.join(unknown)}: choose from {', '.join(SECTIONS)}")
    device = resolve_device(chosen.device)
    settle_for_models(device)
    chosen.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lowmem-layers-", dir=chosen.out) as folder:
        setting = Setting(device, resolve_dtype(chosen.dtype, device), chosen.shape == "tiny", Path(folder))
        about = {"options": {k: str(v) for k, v in vars(chosen).items()}, **versions()}
        if chosen.go_on:
            setting.found = json.loads((chosen.out / "gpu.json").read_text())["sections"]
        answers = run(setting, only, chosen.minutes, lambda: save(setting, about, chosen.out))
    if not answers and chosen.go_on < _MOST_PROCESSES:
        print("the GPU failed: a new process goes on with the next case", flush=True)
        left = max(0.0, chosen.minutes - (time.monotonic() - start) / 60)
        words = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--go-on", str(chosen.go_on + 1),
                 "--minutes", f"{left:.2f}"]  # fmt: skip
        os.execv(sys.executable, words)  # in the place of this process, which holds memory of the card
    print((chosen.out / "gpu.md").read_text())


def versions() -> Result:
    """Say what the figures were measured with."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
            "cuda": torch.version.cuda, "platform": platform.platform()}  # fmt: skip


def run(setting: Setting, only: list[str], minutes: float, keep: Callable[[], None]) -> bool:
    """Run sections one after the other, each within its share of the time. Tell whether the GPU still answers."""
    start = time.monotonic()
    whole = sum(SECTIONS[name][1] for name in only)
    share = 0.0
    for name in only:
        share += SECTIONS[name][1] / whole
        setting.ends = start + share * minutes * 60
        found = setting.found.setdefault(name, {})
        try:
            for case, measure in SECTIONS[name][0](setting):
                if case in found:
                    continue
                found[case] = attempt(setting, measure)
                keep()
                print(f"{time.monotonic() - start:6.1f} s  {name}: {case}: {short(found[case])}", flush=True)
                if found[case].get("gpu failed"):
                    return False
        except Exception as error:  # noqa: BLE001 - the list of cases itself; what was found so far is kept
            found["section"] = failure(error)
            keep()
    forget_homes()
    return True


def attempt(setting: Setting, measure: Callable[[], Result]) -> Result:
    """Measure one case, or say why not. What the case held is freed afterwards."""
    if setting.left_s() <= 0:
        return {"skipped": "the section's time is up"}
    start = time.monotonic()
    try:
        with torch.no_grad():  # not inference mode: the threads that read weights would not be in it
            result = measure()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is written down, and the next case goes on
        result = failure(error)
    gc.collect()
    try:
        release_cached(setting.device)
    except RuntimeError as error:  # of the case's kernels, seen late
        result = {**result, **(failure(error) if "error" not in result else {}), "gpu failed": True}
    return {**result, "seconds": round(time.monotonic() - start, 2)}


def failure(error: Exception) -> Result:
    """Write an exception down."""
    last = traceback.extract_tb(error.__traceback__)[-4:]
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in last]
    failed = {"gpu failed": True} if is_machines_fault(error) and not is_shortage(error) else {}
    return {"error": f"{type(error).__name__}: {error}"[:600], "where": where, **failed}


def short(result: Result) -> str:
    """Say in a few words how a case went."""
    for key in ("error", "skipped"):
        if key in result:
            return f"{key}: {result[key]}"[:200]
    return f"{result['seconds']} s" + ("" if result.get("right", True) else "  WRONG")


def save(setting: Setting, about: Result, out: Path) -> None:
    """Write everything that was found so far."""
    document: dict[str, Any] = {"benchmark": "gpu", **about, "sections": setting.found}
    (out / "gpu.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
    (out / "gpu.md").write_text(markdown(document))


if __name__ == "__main__":
    main()
