"""Whether the model hub can be reached, found out in two seconds; its client alone retries for half a minute."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

_WAIT_S = 2.0


def can_be_reached(url: str, wait_s: float = _WAIT_S) -> bool:
    """Tell whether the host of a URL, or the proxy that leads to it, accepts a connection within `wait_s` seconds."""
    proxy = getproxies().get(urlsplit(url).scheme)
    parts = urlsplit(proxy if proxy and "://" in proxy else f"//{proxy}" if proxy else url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reached = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection((parts.hostname or "", port), wait_s):
                reached.set()
        except OSError:
            pass

    # A thread, since looking a name up has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(wait_s)
    return reached.is_set()


@contextmanager
def hub_asked_once() -> Iterator[None]:
    """Let the hub's clients look into their caches alone where the hub cannot be reached, without a word of retries.

    Holds for the length of a `with` block. Source: huggingface_hub 2.4 and datasets 5.2, which look at these flags at
    each request.
    """
    from huggingface_hub import constants

    def set_datasets(offline: bool) -> None:
        if config := sys.modules.get("datasets.config"):  # imported within the block, it takes the hub's flag over
            config.__dict__["HF_HUB_OFFLINE"] = offline

    flag, config = constants.HF_HUB_OFFLINE, sys.modules.get("datasets.config")
    of_datasets = flag if config is None else config.__dict__["HF_HUB_OFFLINE"]
    offline = flag or not can_be_reached(constants.ENDPOINT)
    clients = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [each.level for each in clients]
    try:
        for each in clients:
            each.setLevel(logging.ERROR)
        constants.HF_HUB_OFFLINE = offline
        set_datasets(of_datasets or offline)
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        set_datasets(of_datasets)
        for each, level in zip(clients, levels, strict=True):
            each.setLevel(level)
