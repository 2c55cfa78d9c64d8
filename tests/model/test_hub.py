"""A hub that cannot be reached is given up in two seconds, and the clients' settings are theirs again afterwards."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from lowmem_layers.model.checkpoint import hub


def test_a_host_that_listens_is_reached_and_a_closed_port_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert hub.can_be_reached(f"https://127.0.0.1:{port}")
        monkeypatch.setattr(hub, "getproxies", lambda: {"https": f"127.0.0.1:{port}"})
        assert hub.can_be_reached("https://hub.invalid")  # the proxy is what is connected to
    monkeypatch.setattr(hub, "getproxies", dict)
    assert not hub.can_be_reached(f"https://127.0.0.1:{port}")


def slow(*_: object) -> None:
    time.sleep(0.5)
    raise OSError("no answer")


def test_a_name_that_is_looked_up_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", slow)
    start = time.perf_counter()
    assert not hub.can_be_reached("https://hub.invalid", wait_s=0.05)
    assert time.perf_counter() - start < 0.4


@pytest.mark.parametrize("reached", [True, False])
def test_clients_are_offline_only_where_the_hub_is_not_reached(reached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "can_be_reached", lambda _: reached)
    with hub.hub_asked_once():
        assert constants.HF_HUB_OFFLINE is not reached
        import datasets  # where it is imported here for the first time, it takes the hub's flag over

        assert datasets.config.HF_HUB_OFFLINE is not reached
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
