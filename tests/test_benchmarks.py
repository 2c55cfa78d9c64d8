"""Every benchmark can be imported, says what it measures, and refuses options that it does not have."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
MODULES = [
    *(f"benchmarks.{path.stem}" for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text("utf-8")),
    "benchmarks.gpu.__main__",
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # another benchmark has imported this one
@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_says_what_it_measures_and_refuses_other_options(module, monkeypatch, capsys):
    for option, status in (("--help", 0), ("--no-such-option", 2)):
        monkeypatch.setattr(sys, "argv", [module, option])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == status
    said = capsys.readouterr()
    about = said.out.partition("\n\n")[2].partition("\n\n")[0]  # behind the usage
    assert len(about.split()) > 5
    assert not about.startswith(("options:", "positional arguments:"))
    assert said.err.startswith("usage:")
