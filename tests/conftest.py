"""What every test starts from."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute on one thread: tiny models gain nothing from a second one, and the workers share the cores."""
    torch.set_num_threads(1)
