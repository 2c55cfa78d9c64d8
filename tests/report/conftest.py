"""The study's dictionary engine, for commands that need a record."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_FILE = Path(__file__).parents[1] / "study" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("dictionary_engine", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
dictionary = importlib.util.module_from_spec(_SPEC)
sys.modules["dictionary_engine"] = dictionary
_SPEC.loader.exec_module(dictionary)

from lowmem_layers.study import StudySpec, run_study  # noqa: E402


@pytest.fixture
def bench():
    """Give the class."""
    return dictionary.Bench


@pytest.fixture
def engine():
    """Give the class."""
    return dictionary.DictionaryEngine


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a finished run of two tasks."""
    folder = tmp_path_factory.mktemp("record") / "r"
    return run_study(StudySpec(tasks=("one",), max_removed=2), folder, prepare=dictionary.Bench().prepare)
