"""Memory that runs out for real in the middle of a run: one line, exit status 1, and the run goes on afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lowmem_layers import open_run
from tests.model.conftest import save_model

# `run` with a tile an item. Once `N` tiles are on the disk, the process may take MARGIN bytes more than it has.
SCRIPT = """
import resource, sys
import psutil
from lowmem_layers.cli.entry import run_command_line
from lowmem_layers.engine import engine
from lowmem_layers.study import tiles

after, margin = int(sys.argv[1]), int(sys.argv[2])
engine.tile_work_for = lambda *_, **__: 1
commit = tiles._commit

def committed(earlier, scored):
    commit(earlier, scored)
    if len(earlier.values.tiles) == after:
        most = psutil.Process().memory_info().vms + margin
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

tiles._commit = committed
sys.exit(run_command_line(sys.argv[3:]))
"""
N_ITEMS = 4
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is a limit of Linux")
def test_memory_that_runs_out_between_two_tiles(tmp_path):
    """A vocabulary of 200,000: one row of logits takes 0.8 MB, more than there is."""
    save_model(tmp_path / "model", "llama", vocab_size=200_000)
    items = [{"q": f"the {n}", "options": [" one", " two"], "answer": n % 2} for n in range(N_ITEMS)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "task.toml").write_text(TASK)

    def run(out: str, after: int) -> subprocess.CompletedProcess[str]:
        options = ["--model", "model", "--tasks", "task.toml", "--max-removed", "1", "--threads", "1", "--no-cache"]
        words = ["run", *options, "--device", "cpu", "--display", "none", "--out", out]
        # Memory that is given back is taken anew each time, instead of from what malloc has kept of it.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
        command = [sys.executable, "-c", SCRIPT, str(after), str(1 << 19), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    ended = run("r", after=2)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert (ended.returncode, len(errors)) == (1, 1), ended.stderr
    assert "out of memory" in errors[0]
    assert "Traceback" not in ended.stderr
    left = open_run(tmp_path / "r")
    assert (left.manifest.status, left.n_items_done) == ("failed", 2)
    assert not list((tmp_path / "r").rglob("*.partial"))

    for out in ("r", "whole"):
        assert run(out, after=-1).returncode == 0
    for path in sorted((tmp_path / "whole" / "scores").iterdir()):
        assert (tmp_path / "r" / "scores" / path.name).read_bytes() == path.read_bytes()
    assert open_run(tmp_path / "r").manifest.status == "done"
