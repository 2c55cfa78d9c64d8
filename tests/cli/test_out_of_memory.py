"""Memory that the system refuses is one line and exit status 1, and the run goes on where there is more."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from lowmem_layers import open_run
from lowmem_layers.cli.entry import run_command_line
from tests.model.conftest import save_model

MIB = 1 << 20
TASK = 'data = "items.jsonl"\ncontext = "{{ q }}"\nchoices = "options"\ngold = "answer"\n'


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit holds for the rest of a process")
def test_an_address_space_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    import resource

    # 1) a run whose tile takes far more than the limit leaves
    monkeypatch.chdir(tmp_path)
    save_model(Path("model"), "llama")
    items = [{"q": f"{n} " + "the " * 60, "options": [" one", " two"], "answer": n % 2} for n in range(120)]
    Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    Path("task.toml").write_text(TASK)
    command = ["run", "--model", "model", "--tasks", "task.toml", "--max-removed", "2", "--dtype", "float32"]
    command += ["--device", "cpu", "--display", "none", "--no-cache", "--out", "r"]
    # 2) in a process of its own, which the system gives little more than it has
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.alarm(60)
            limit = psutil.Process().memory_info().vms + 96 * MIB
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            status = run_command_line([*command, "--threads", "1"])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    said = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["error", "hint"], said
    assert "out of memory" in said[0]
    # 3) the same command again, with memory
    assert open_run("r").manifest.status == "failed"
    assert run_command_line([*command, "--threads", "1", "--limit", "120"]) == 2, "other options are another run"
    assert run_command_line([*command, "--threads", "1"]) == 0
    assert open_run("r").n_items_done == 120
