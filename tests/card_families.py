"""Compare every family's sweep on the card with the CPU's own forward passes: run by `test_simulated_card`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.gpu.correct import compare_family
from benchmarks.gpu.setting import Setting
from tests.families import FAMILIES, HYBRIDS


def main() -> None:
    """Print the families that are not right; end with how many cases there were."""
    setting, n_cases = Setting(torch.device("cuda"), torch.float32, True, Path()), 0
    for name in (*FAMILIES, *HYBRIDS):
        for dtype in (torch.float32, torch.float64):
            with torch.no_grad():
                found = compare_family(setting, name, dtype)
            n_cases += 1
            if not found["right"]:
                sys.stdout.write(f"{name} {dtype}: {found}\n")
    sys.stdout.write(f"{n_cases} cases\n")


if __name__ == "__main__":
    main()
