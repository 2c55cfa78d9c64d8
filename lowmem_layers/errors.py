"""The exception tree, and the words with which an unknown name is answered.

LowmemLayersError            any error that this package raises on purpose; it carries a hint
├── UsageError               bad usage or bad input (exit status 2)
│   ├── ModelError           the model cannot be found or read, or is not a decoder-only language model
│   │   └── RemovalError     a sublayer of the model cannot be removed exactly
│   ├── CheckpointError      a weight file is damaged, is incomplete or contradicts its config
│   ├── TaskError            a task, a data file or an item is unusable
│   ├── BudgetError          the work does not fit the memory that was given
│   └── RecordError          a run folder is missing, is damaged or belongs to another run
│       └── DamagedError     a file of a run folder is not as it was written; what it held can be made again
├── ShortageError            memory ran out while something was computed (exit status 1)
├── WorkerError              a worker of a run ended, fails or does not answer (exit status 1)
└── EngineError              a computation broke a promise of this package (exit status 1)
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_LIKENESS = 0.5  # difflib's ratio from which a name is worth naming: "arc-easy" for "arc_easy", not "zzz"


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
    """Bad usage or bad input: the caller can correct it."""

    exit_status = 2


class ModelError(UsageError):
    """The model cannot be found or read, or is not a decoder-only language model."""


class RemovalError(ModelError):
    """A sublayer of the model cannot be removed exactly."""


class CheckpointError(UsageError):
    """A weight file is damaged, is incomplete or contradicts its config."""


class TaskError(UsageError):
    """A task, a data file or an item is unusable."""


class BudgetError(UsageError):
    """The work does not fit the memory that was given."""


class RecordError(UsageError):
    """A run folder is missing, is damaged or belongs to another run."""


class DamagedError(RecordError):
    """A file of a run folder is not as it was written; what it held can be made again."""


class ShortageError(LowmemLayersError):
    """Memory ran out while something was computed, though it was counted as enough."""


class WorkerError(LowmemLayersError):
    """A worker of a run ended, fails or does not answer."""


class EngineError(LowmemLayersError):
    """A computation broke a promise of this package."""


def did_you_mean(name: str, known: Iterable[str], n: int = 1) -> str:
    """Write "did you mean X or Y? " with at most `n` known names that resemble `name`, or "" if none does.

    Names that resemble it as much as the last of these are named too: 5bit is as near to 4bit as to 8bit.
    The text is meant to begin a hint, so it ends with a space. Upper and lower case count as equal.
    """
    spelled = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), spelled, n=max(1, len(spelled)), cutoff=_LIKENESS)
    likeness = [SequenceMatcher(None, one, name.lower()).ratio() for one in near]
    chosen = [one for one, like in zip(near, likeness, strict=True) if like >= likeness[:n][-1]]
    # Equally near ones in the order in which they are known
    chosen.sort(key=lambda one: (-likeness[near.index(one)], list(spelled).index(one)))
    return f"did you mean {' or '.join(spelled[one] for one in chosen)}? " if chosen else ""
