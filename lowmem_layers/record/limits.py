"""Which numbers an option may be, whether it comes from a command line, a file or a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowmem_layers.errors import UsageError

if TYPE_CHECKING:
    from lowmem_layers.record.spec import StudySpec

MOST_THREADS = 4096
_MOST, _WIDEST = (1 << 31) - 1, (1 << 63) - 1  # of 32 and of 64 bits


def check_numbers(given: StudySpec, *, draws: bool) -> None:
    """Refuse numbers out of range. With `draws`, the seed is used.

    Raises:
        UsageError: one is too small or too large.
    """
    for option, value, least, most in (
        ("--limit", given.limit, 1, _MOST),
        ("--seed", given.seed if draws else None, 0, _WIDEST),  # numpy's generators take no negative one
        ("--max-removed", given.max_removed, 0, _MOST),
        ("--permutations", given.permutations, 2, _MOST),
        ("--fewshot", given.fewshot, 0, _MOST),
        ("--threads", given.threads, 1, MOST_THREADS),
        ("--window", given.window, 2, _MOST),
        ("--stride", given.stride, 1, _MOST),
        ("--max-gpu-memory", given.max_gpu_memory, 1, _WIDEST),
        ("--max-cpu-memory", given.max_cpu_memory, 1, _WIDEST),
    ):
        if value is not None and not least <= value <= most:
            word, end = ("small", f"least {least}") if value < least else ("large", f"most {most}")
            raise UsageError(f"{option} {value} is too {word}", f"{option} takes a number of at {end}")
