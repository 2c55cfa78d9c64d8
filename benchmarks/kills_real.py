"""The second half of `benchmarks.kills`: the command `run`, with a real engine on a tiny Llama, killed anywhere.

Each run has a folder and a cache of its own; NF4 weights are packed, kept and read again. torch is imported once, and a
process is forked for each run. First come the named points, in the writes of every kind of file and at each line that
writes the cache; then random moments. The page, which would take most of the time, is
made of nothing.
"""

from __future__ import annotations

import dis
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.kills import PACKED_FILE, Point, digests, forked, points_in_writes

N_ITEMS = 8
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


def points_in_the_cache() -> list[Point]:
    """Name each line that writes the cache of packed weights, in its first pass, and a middle one of those in loops."""
    from lowmem_layers.model.homes import packed_file

    writer = packed_file.PackedFileWriter
    lines = [
        line
        for function in (writer.add, writer.finish, packed_file.write_packed_file.__wrapped__)
        for line in sorted({line for _, line in dis.findlinestarts(function.__code__) if line is not None})[1:]
    ]
    return [Point((PACKED_FILE, line)) for line in lines]


def is_killed(path: Path) -> bool:
    """Tell whether a partial file belongs to a process that was killed: it is deleted once it is ten minutes old."""
    return not os.path.exists(f"/proc/{path.name.split('.')[-2]}")


def kill_commands(n_kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """Kill and resume the command so often; give the number of processes that died, and what went wrong."""
    from lowmem_layers import report
    from lowmem_layers.cli import summary
    from lowmem_layers.cli.entry import run_command_line
    from lowmem_layers.engine import engine
    from lowmem_layers.model import load  # noqa: F401 (imported once, before the forks)
    from tests.model.conftest import save_model

    report.write_report = lambda *_, **__: Path("page")
    summary.summarise = lambda *_, **__: None
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

        action("once")  # in this process, so that everything is imported when it forks
        start = time.monotonic()
        if forked(lambda: action("whole")):
            return 0, ["the uninterrupted command failed"]
        whole, length_s = record("whole"), time.monotonic() - start
        if len(whole) != N_ITEMS + 3:
            wrong.append(f"{len(whole)} files of an uninterrupted run: not a tile an item")
        named = [*points_in_writes(), *points_in_the_cache()]
        for index in range(n_kills):
            name = f"r{index}"
            point = named[index] if index < len(named) else None
            moment = None if point is not None else rng.uniform(0.0, length_s)
            words = f"at {point.words}" if point is not None else f"after {moment:.2f} s"
            status = forked(lambda name=name: action(name), point, moment)
            if point is not None and status == 0:
                continue  # a line that only errors pass
            if point is not None and status not in (-signal.SIGKILL, -signal.SIGXFSZ):
                wrong.append(f"the command was not killed {words}, but ended with {status}")
            n_died += status < 0
            if forked(lambda name=name: action(name)):
                wrong.append(f"the command killed {words} does not go on")
            elif record(name) != whole:
                wrong.append(f"the command killed {words} has another record")
            if left := [path.name for path in Path(f"cache-{name}").rglob("*.partial") if not is_killed(path)]:
                wrong.append(f"the command killed {words} left {left}")
            if index % 20 == 19:
                print(f"{index + 1} kills, {len(wrong)} wrong, {time.monotonic() - start:.0f} s", flush=True)
        os.chdir("/")
    return n_died, wrong
