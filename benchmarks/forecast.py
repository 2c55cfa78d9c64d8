"""Does a run take the memory and the time that `plan` predicts?

Each --case is a string of options that both commands take, and --case may be given several times; without it, the cases
are the embedded model in every packing, in memory and on disk. First `plan` runs in its own process; then `run`, whose
peak memory is read from the system while it runs. The time is that of scoring alone, as run.json records it. The last
line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

PACKINGS = ("--quant none", "--quant 4bit", "--quant 8bit --requantize", "--quant 4bit --requantize")
CASES = (*PACKINGS, "--quant 4bit --offload disk", "--quant none --offload disk")

_PLAN = """
import dataclasses, json, sys
from lowmem_layers import StudySpec
from lowmem_layers.cli.run import run
from lowmem_layers.cli.options import spec_from
from lowmem_layers.forecast.forecast import forecast_study
context = run.make_context("run", sys.argv[1:])
names = {field.name for field in dataclasses.fields(StudySpec)} | {"no_cache"}
options = {name: value for name, value in context.params.items() if name in names}
found = forecast_study(spec_from(options))
memory = found.memory
print(json.dumps({"peak_bytes": memory.peak_host, "loading_bytes": memory.loading, "running_bytes": memory.host,
                  "home": memory.home, "states_bytes": memory.states, "tiles": memory.n_tiles,
                  "seconds": 3600 * found.work.hours, "compute_s": found.work.compute_s, "speed": found.speed,
                  "flops": found.work.flops}))
"""


def forecast(options: list[str]) -> dict[str, Any]:
    """Plan in a fresh process."""
    command = [sys.executable, "-c", _PLAN, *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(options: list[str], folder: Path) -> dict[str, Any]:
    """Run, and read the peak memory of the process until it ends. Units: bytes, seconds."""
    start_up = "from lowmem_layers.cli import main; main()"
    command = [sys.executable, "-c", start_up, "run", *options, "--out", str(folder), "--display", "none"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _high_water(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with status {process.returncode}")
    record = json.loads((folder / "run.json").read_text())
    return {"peak_bytes": peak, "wall_s": time.perf_counter() - start, "scoring_s": record["elapsed_s"],
            "tiles": len(record["tiles"]), "home": record["model"]["home"]}  # fmt: skip


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Compare every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", help="options of run and plan, as one string")
    parser.add_argument("--common", default="--limit 12 --max-removed 4", help="options that all cases share")
    options = parser.parse_args()
    rows = []
    print(f"{'peak':>9}{'predicted':>11}{'ratio':>7}{'scoring':>10}{'predicted':>11}{'ratio':>7}  case")
    for case in options.case or CASES:
        arguments = shlex.split(f"{options.common} {case}")
        planned = forecast(arguments)
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(arguments, Path(scratch) / "run")
        bytes_ratio, time_ratio = planned["peak_bytes"] / found["peak_bytes"], planned["seconds"] / found["scoring_s"]
        rows.append({"case": case, "planned": planned, "measured": found,
                     "peak_ratio": bytes_ratio, "time_ratio": time_ratio})  # fmt: skip
        print(
            f"{found['peak_bytes'] / 2**20:9,.0f}{planned['peak_bytes'] / 2**20:11,.0f}{bytes_ratio:7.2f}"
            f"{found['scoring_s']:10.1f}{planned['seconds']:11.1f}{time_ratio:7.2f}  {case}",
            flush=True,
        )
    machine = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "forecast", "common": options.common, "rows": rows, "torch": torch.__version__,
                      "machine": machine}))  # fmt: skip


if __name__ == "__main__":
    main()
