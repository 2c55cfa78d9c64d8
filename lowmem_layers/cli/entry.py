"""The entry point: the one place where errors become two lines on stderr and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from lowmem_layers.cli.output import visible
from lowmem_layers.errors import LowmemLayersError

INTERRUPTED = 130


class Interrupted(Exception):
    """The run was stopped by Ctrl-C or SIGTERM; the message says how to continue."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (None: that of this process) and leave with its exit status."""
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
        command = error.ctx.command_path if error.ctx is not None else "lowmem-layers"
        return complain(error.format_message(), f"{command} --help lists its arguments and options", 2)
    except click.ClickException as error:
        return complain(error.format_message(), "", 2)
    except Interrupted as stopped:
        return complain("interrupted", str(stopped), INTERRUPTED, word="note")
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted", "", INTERRUPTED, word="note")
    except PermissionError as error:
        hint = "change the permissions of it or of a folder above it, or name another place"
        return complain(f"permission denied: {error.filename or error}", hint, 2)
    except (MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        return complain(
            "out of memory", "give fewer bytes with --max-cpu-memory or --max-gpu-memory, or close other programs", 1
        )
    except (BrokenPipeError, SystemExit):
        # The reader of our output has left (`| head`); click turns this into SystemExit(1). There is nobody to tell,
        # and Python must not complain at exit either, when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return status if isinstance(status, int) else 0


def _is_shortage(error: Exception) -> bool:
    """Tell whether memory ran out, without importing torch where nothing has."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from lowmem_layers.model.memory import is_shortage

    return is_shortage(error)


def complain(message: str, hint: str, status: int, word: str = "error") -> int:
    """Write `error: …` and `hint: …`, one line each, and give the status back."""
    for name, text in ((word, message), ("hint", hint)):
        if text:
            click.echo(f"{name}: {visible(' '.join(text.split()))}", err=True)
    return status
