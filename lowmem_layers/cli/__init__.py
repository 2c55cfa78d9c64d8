"""The commands and the display: the only place where rooms are put together."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (None: that of this process) and leave with its exit status.

    What it needs is imported here, so that Ctrl-C during the imports already ends in one line.
    """
    status = 130
    try:
        from lowmem_layers.cli.entry import as_interrupts, run_command_line

        with as_interrupts():
            status = run_command_line(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("note: interrupted", file=sys.stderr)
    sys.exit(status)


__all__ = ["main"]
