"""Killed anywhere with SIGKILL and resumed, a run ends with the record of one that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for each kill")
def test_twenty_kills():
    """At writes, at lines, while resuming and at random moments; `python -m benchmarks.kills` has hundreds."""
    command = [sys.executable, "-m", "benchmarks.kills", "--lines", "16", "--moments", "3", "--real", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["wrong"] == 0, ended.stdout
    assert sum(found["kills"].values()) >= 20
