"""The exception tree.

LowmemLayersError            anything this package raises on purpose; carries a hint
├── UsageError               bad usage or bad input (exit status 2)
│   ├── ModelError           the model cannot be found, read, or is not one we can take apart
│   │   └── RemovalError     a sublayer of it cannot be removed exactly
│   ├── CheckpointError      a weight file is damaged, incomplete or contradicts its config
│   ├── TaskError            a task, a data file or an item is unusable
│   ├── BudgetError          the work cannot fit the memory that was given
│   └── RecordError          a run folder is missing, foreign or damaged
└── EngineError              a computation broke its own promise (exit status 1)
"""

from __future__ import annotations


class LowmemLayersError(Exception):
    """Say what happened, with the numbers; `hint` says what to do next.

    The command line prints `error: MESSAGE` and `hint: HINT`, one line each.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LowmemLayersError):
    """Bad usage or bad input: the caller can put it right."""

    exit_status = 2


class ModelError(UsageError):
    """The model cannot be found, read, or is not a decoder-only language model."""


class RemovalError(ModelError):
    """A sublayer of the model cannot be removed exactly."""


class CheckpointError(UsageError):
    """A weight file is damaged, incomplete or contradicts its config."""


class TaskError(UsageError):
    """A task, a data file or an item is unusable."""


class BudgetError(UsageError):
    """The work cannot fit the memory that was given."""


class RecordError(UsageError):
    """A run folder is missing, belongs to another run, or is damaged."""


class EngineError(LowmemLayersError):
    """A computation broke a promise this package makes."""
