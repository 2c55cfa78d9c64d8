"""Whatever runs on CUDA alone, run once on a simulated card (see `simulated_card.py`), with real numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.families import FAMILIES, HYBRIDS
from tests.simulated_card import build

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None, reason="the simulated card needs Linux and g++"
    ),
]
RUN = ["run", "--quant", "4bit", "--requantize", "--limit", "4", "--max-removed", "1", "--dtype", "float32"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("card"))


def start(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=settings, text=True, capture_output=True, check=False
    )


def scores(folder: Path) -> np.ndarray:
    return pq.read_table(folder / "scores" / "tile-00000.parquet")["loglikelihood"].to_numpy()


def engine_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["engine"]


def test_a_run_on_the_card_finds_what_the_cpu_finds(library: Path, tmp_path: Path) -> None:
    """From every home, and where memory runs out in the middle, with the account of it."""
    done = start(["lowmem_layers", *RUN, "--device", "cpu", "--out", str(tmp_path / "host")])
    assert done.returncode == 0, done.stderr
    card = ["tests.simulated_card", str(library), "lowmem_layers", *RUN, "--device", "cuda", "--display", "plain"]
    found = {}
    for home in ("none", "cpu", "disk"):
        done = start([*card, "--offload", home, "--out", str(tmp_path / home)])
        assert done.returncode == 0, done.stderr
        found[home] = scores(tmp_path / home)
    np.testing.assert_allclose(found["none"], scores(tmp_path / "host"), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(found["cpu"], found["none"])
    np.testing.assert_array_equal(found["disk"], found["none"])
    memory = engine_of(tmp_path / "none")["memory"]
    assert 100 << 20 < memory["gpu_peak_bytes"] <= memory["gpu_reserved_peak_bytes"] < 400 << 20
    assert memory["gpu_out_of_memory"] == 0
    # another program takes the memory: smaller chunks, the same numbers but for their last bits
    crowded = str(tmp_path / "crowded")
    done = start([*card, "--out", crowded], SIMULATED_CARD_LEAVES=str(25 << 20))
    assert done.returncode == 0, done.stderr
    assert "out of memory in the tile of quick quick-000: computed again in chunks of " in done.stderr
    np.testing.assert_allclose(scores(tmp_path / "crowded"), found["none"], rtol=0, atol=1e-3)
    n_times = len(engine_of(tmp_path / "crowded")["narrowed"])
    assert engine_of(tmp_path / "crowded")["memory"]["gpu_out_of_memory"] == n_times > 0
    # so small that no chunk fits: one line, and the run can go on afterwards, on a card of little memory, too
    done = start([*card, "--out", str(tmp_path / "tight")], SIMULATED_CARD_LEAVES=str(1 << 20))
    assert done.returncode == 1
    assert "error: cuda: out of memory in chunks of 1024 tokens" in done.stderr
    done = start([*card, "--out", str(tmp_path / "tight")], SIMULATED_CARD_BYTES=str(1100 << 20))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(scores(tmp_path / "tight"), found["none"], rtol=0, atol=1e-3)


def test_every_family_on_the_card_is_what_the_cpu_computes(library: Path) -> None:
    done = start(["tests.simulated_card", str(library), "tests.card_families"])
    assert done.returncode == 0, done.stderr
    n_families = len({**FAMILIES, **HYBRIDS})
    assert done.stdout == f"{2 * n_families} cases\n"


def test_the_gpu_benchmark_runs_to_its_end(library: Path, tmp_path: Path) -> None:
    """Each case of each section, but for those that compile kernels for a card."""
    options = ["--shape", "tiny", "--dtype", "float32", "--minutes", "60", "--out", str(tmp_path)]
    done = start(["tests.simulated_card", str(library), "benchmarks.gpu", *options])
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    failed = {(s, c): r["error"] for s, cases in sections.items() for c, r in cases.items() if "error" in r}
    assert [case for case in failed if "fused" not in case[1]] == [], failed
    wrong = [(s, c) for s, cases in sections.items() for c, r in cases.items() if not r.get("right", True)]
    assert wrong == []
    assert sections["fast"]["llama-3-8b parts"]["synchronisations of a one-item tile"] <= 12
