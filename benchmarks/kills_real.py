"""The second half of `benchmarks.kills`: the command `run`, with a real engine on a tiny Llama, killed at any moment.

Each run has a folder and a cache of its own; NF4 weights are packed, kept and read again. torch is imported once, and a
process is forked for each run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.kills import digests, forked

N_ITEMS = 8
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


def kill_commands(n_kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill and resume the command so often; give the number of processes that died, and what went wrong."""
    from lowmem_layers.cli.entry import run_command_line
    from lowmem_layers.engine import engine
    from lowmem_layers.model import load  # noqa: F401 (imported once, before the forks)
    from tests.model.conftest import save_model

    engine.tile_work_for = lambda *_, **__: 1  # a tile an item, however small the model is
    n_died, wrong = 0, []
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        save_model(Path("model"), "llama")
        items = [{"q": f"the {n}", "options": [" one", " two"], "answer": n % 2} for n in range(N_ITEMS)]
        Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        Path("task.toml").write_text(TASK)

        def action(name: str) -> None:
            os.environ["LOWMEM_LAYERS_CACHE"] = f"cache-{name}"
            options = [
                "--quant",
                "4bit",
                "--max-removed",
                "1",
                "--threads",
                "1",
                "--device",
                "cpu",
                "--display",
                "none",
            ]
            status = run_command_line(["run", "--model", "model", "--tasks", "task.toml", "--out", name, *options])
            if status:
                raise SystemExit(status)

        def record(name: str) -> dict[str, str]:
            return {path: digest for path, digest in digests(Path(name)).items() if not path.startswith("report")}

        start = time.monotonic()
        if forked(lambda: action("whole")):
            return 0, ["the uninterrupted command failed"]
        whole, length_s = record("whole"), time.monotonic() - start
        if len(whole) != N_ITEMS + 3:
            wrong.append(f"{len(whole)} files of an uninterrupted run: not a tile an item")
        for index in range(n_kills):
            name, moment = f"r{index}", rng.uniform(0.0, length_s)
            status = forked(lambda name=name: action(name), kill_after_s=moment)
            n_died += status == -signal.SIGKILL
            if forked(lambda name=name: action(name)):
                wrong.append(f"the command killed after {moment:.2f} s does not go on")
            elif record(name) != whole:
                wrong.append(f"the command killed after {moment:.2f} s has another record")
        os.chdir("/")
    return n_died, wrong
