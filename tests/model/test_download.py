"""A network that drops while a model is downloaded: taken up again, or one line; what was fetched is kept."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lowmem_layers.errors import ModelError
from lowmem_layers.model.checkpoint.source import find_source
from lowmem_layers.model.spec import ModelSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG, WEIGHTS = b'{"model_type": "llama"}', bytes(range(256)) * 400


@dataclass
class Hub:
    """A stand-in for the model hub: one repository, whose weights break off after so many bytes so many times."""

    files: dict[str, bytes]
    breaks: int = 0
    after_bytes: int = 30_000
    sent: list[tuple[str, int]] = field(default_factory=list)

    def handler(hub) -> type[BaseHTTPRequestHandler]:
        """Make the class that answers requests."""

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self, content: bytes, **headers: str) -> None:
                self.send_response(206 if "Content_Range" in headers else 200)
                for name, value in {"Content_Length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

            def do_HEAD(self) -> None:
                content = hub.files[self.path.rsplit("/", 1)[1]]
                self._answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

            def do_GET(self) -> None:
                if "/api/" in self.path:
                    listed = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in hub.files.items()
                    ]
                    about = {"id": "someone/some", "sha": COMMIT, "siblings": [], "private": False}
                    text = json.dumps(listed if "/tree/" in self.path else about).encode()
                    self._answer(text, Content_Type="application/json")
                    self.wfile.write(text)
                    return
                name = self.path.rsplit("/", 1)[1]
                whole = hub.files[name]
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
                hub.sent.append((name, start))
                about = {"ETag": f'"{hashlib.sha1(whole).hexdigest()}"', "X_Repo_Commit": COMMIT}
                if start:
                    about["Content_Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
                self._answer(whole[start:], **about)
                if name == "model.safetensors" and hub.breaks:
                    hub.breaks -= 1
                    whole = whole[: start + hub.after_bytes]
                    self.close_connection = True
                self.wfile.write(whole[start:])

        return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made.handler())
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(constants.ENDPOINT, address))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits a second before each try
    yield made
    server.shutdown()
    server.server_close()


def test_a_download_that_breaks_off_is_taken_up_where_it_was(hub: Hub) -> None:
    hub.breaks = 2
    folder = find_source(ModelSpec("someone/some")).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [start for name, start in hub.sent if name == "model.safetensors"] == [0, 30_000, 60_000]


def test_a_network_that_stays_away_is_one_line_and_the_next_call_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.breaks, hub.after_bytes = 10**6, 0
    with pytest.raises(ModelError, match=r"^the download of someone/some broke off: ") as caught:
        find_source(ModelSpec("someone/some"))
    assert "\n" not in caught.value.message
    assert "same command again" in caught.value.hint
    hub.breaks = 0
    folder = find_source(ModelSpec("someone/some")).folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
