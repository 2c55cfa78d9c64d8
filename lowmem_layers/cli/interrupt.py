"""An interruption that knows how to go on."""

from __future__ import annotations


class Interrupted(Exception):
    """The run was stopped (Ctrl-C, SIGTERM); the message says how to resume."""
