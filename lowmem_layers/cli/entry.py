"""The entry point: the one place where errors become two lines on stderr and an exit status."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from lowmem_layers.cli.output import visible, visible_lines
from lowmem_layers.errors import LowmemLayersError

INTERRUPTED = 130
DEBUG = "--debug"
_SAME_INTERRUPT_S = 2.0


class Interrupted(Exception):
    """The run was stopped by Ctrl-C, SIGTERM or SIGHUP; the message says how to continue."""


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Treat SIGTERM (a job scheduler) and SIGHUP (the terminal was closed) like Ctrl-C.

    A second signal within two seconds changes nothing: the first one is at work, and the record is being closed. Later
    ones count again, in case that a library caught the first. What `nohup` ignores stays ignored.
    """
    last_s = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= _SAME_INTERRUPT_S:
            last_s = now_s
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        numbers = []
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command; give its exit status: 0 done, 2 bad usage or input, 1 failed, 130 interrupted."""
    # A terminal or a file whose encoding lacks a sign (cp1252, ASCII) shows another one: no result is lost for that.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    debug = DEBUG in arguments
    try:
        from lowmem_layers.cli.app import app
        from lowmem_layers.record.files import check_text

        for argument in arguments:
            check_text("an argument", argument)
        with _traceback_shown() if debug else contextlib.nullcontext():
            words = [word for word in arguments if word != DEBUG]
            status = app.main(words, prog_name="lowmem-layers", standalone_mode=False)
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
        if _is_shortage(error):
            hint = "give fewer bytes with --max-cpu-memory or --max-gpu-memory, or close other programs"
            return complain("out of memory", hint, 1)
        if type(error).__name__ != "AcceleratorError":
            raise
        hint = "lowmem-layers doctor tries the GPU's kernels; update its driver or torch, or use --device cpu"
        return complain(f"the GPU failed: {(str(error).splitlines() or [''])[0]}", hint, 1)
    except (BrokenPipeError, SystemExit):
        # The reader of our output has left (`| head`); click turns this into SystemExit(1). There is nobody to tell,
        # and Python must not complain at exit either, when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # of a file: its name is too long, the disk is full or broken; of a network: no file
        what = error.strerror or str(error) or type(error).__name__
        if error.filename is None:
            return complain(what, "", 1)
        return complain(f"{what}: {error.filename}", "name another file or folder", 2)
    return status if isinstance(status, int) else 0


@contextlib.contextmanager
def _traceback_shown() -> Iterator[None]:
    """Write where an error comes from, before it becomes two lines."""
    try:
        yield
    except Exception:
        import traceback

        click.echo(visible_lines(traceback.format_exc()), err=True)
        raise


def _is_shortage(error: Exception) -> bool:
    """Tell whether memory ran out, without importing torch where nothing has."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError) or "can't start new thread" in str(error)
    from lowmem_layers.model.memory import is_shortage

    return is_shortage(error)


def complain(message: str, hint: str, status: int, word: str = "error") -> int:
    """Write `error: …` and `hint: …`, one line each, and give the status back."""
    with contextlib.suppress(OSError):  # the terminal was closed: there is nobody to tell
        for name, text in ((word, message), ("hint", hint)):
            if text:
                click.echo(f"{name}: {visible(' '.join(text.split()))}", err=True)
    return status
