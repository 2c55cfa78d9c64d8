"""What every test starts from."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import settings

from lowmem_layers import StudySpec, run_study
from tests.dictionary import Bench, DictionaryEngine

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute on one thread: tiny models gain nothing from a second one, and the workers share the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def bench() -> type[Bench]:
    """Give the class of a study without a model: a test makes as many as it needs."""
    return Bench


@pytest.fixture
def engine() -> type[DictionaryEngine]:
    """Give the class of an engine that answers from a dictionary."""
    return DictionaryEngine


@pytest.fixture
def spec() -> StudySpec:
    """Study two tasks with windows of up to two."""
    return StudySpec(tasks=("one", "three"), max_removed=2)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a finished run of one task."""
    folder = tmp_path_factory.mktemp("record") / "r"
    return run_study(StudySpec(tasks=("one",), max_removed=2), folder, prepare=Bench().prepare)


def pytest_collection_finish() -> None:
    """Keep what importing torch and transformers made, a million objects, out of every garbage collection."""
    gc.collect()
    gc.freeze()
