"""The one place where errors become two lines on stderr and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from lowmem_layers.cli.interrupt import Interrupted
from lowmem_layers.errors import LowmemLayersError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (None: that of this process) and leave with its status."""
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command; give its exit status: 0 done, 2 bad usage or input, 1 failed, 130 interrupted."""
    from lowmem_layers.cli.app import app

    try:
        status = app.main(list(arguments), prog_name="lowmem-layers", standalone_mode=False)
        sys.stdout.flush()
    except LowmemLayersError as error:
        return complain(error.message, error.hint, error.exit_status)
    except click.UsageError as error:
        return complain(error.format_message(), _usage_hint(error), 2)
    except click.ClickException as error:
        return complain(error.format_message(), "", 2)
    except Interrupted as stopped:
        return complain("interrupted", str(stopped), INTERRUPTED, word="note")
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted", "", INTERRUPTED, word="note")
    except PermissionError as error:
        hint = "change its permissions, or those of a folder above it, or name another place"
        return complain(f"permission denied: {error.filename or error}", hint, 2)
    except MemoryError:
        return complain("out of memory", "give fewer bytes with --max-cpu-memory, or close other programs", 1)
    except (BrokenPipeError, SystemExit):
        # The reader of our output has left (`| head`), which click answers by SystemExit(1): nothing to say, and
        # nothing for Python to say at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status if isinstance(status, int) else 0


def complain(message: str, hint: str, status: int, word: str = "error") -> int:
    """Write `error: …` and `hint: …`, one line each."""
    click.echo(f"{word}: {_one_line(message)}", err=True)
    if hint:
        click.echo(f"hint: {_one_line(hint)}", err=True)
    return status


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _usage_hint(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx is not None else "lowmem-layers"
    return f"{command} --help lists what it takes"
