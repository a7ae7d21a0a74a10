"""The Hub over TLS, as it really is: read like any other, and bounded in time as well."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipmerge.errors import HubError
from clipmerge.hub.download import fetch, resolve
from clipmerge.hub.ids import HubId

SHA = "a" * 40
CONTENT = bytes(range(256)) * 400
PARTS = 30  # sent in over a second

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


class Hub(BaseHTTPRequestHandler):
    """A model of one file, sent slowly but steadily; another whose headers never end."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._file(b"")

    def do_GET(self) -> None:
        if "endless" in self.path:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                self.wfile.write(b"X-More: 1\r\n")
                time.sleep(0.1)
        elif "/resolve/" in self.path:
            self._file(CONTENT)
        else:
            file = {"type": "file", "path": "model.safetensors", "size": len(CONTENT), "oid": "0" * 40}
            listed = [{"rfilename": file["path"]}]
            told = [file] if "/tree/" in self.path else {"id": "acme/x", "sha": SHA, "siblings": listed}
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _file(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("ETag", '"abc"')
        self.end_headers()
        size = -(-len(content) // PARTS)
        for start in range(0, len(content), size or 1):
            self.wfile.write(content[start : start + size])
            time.sleep(1.5 / PARTS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_steady_download_may_take_longer_than_an_answer(hub: str) -> None:
    begin = time.monotonic()
    found = fetch(HubId("acme/x"), endpoint=hub)
    assert (found.folder / "model.safetensors").read_bytes() == CONTENT
    assert time.monotonic() - begin > 1.3


@pytest.mark.slow
def test_headers_that_never_end_are_given_up(hub: str) -> None:
    with pytest.raises(HubError, match="no answer in time"):
        resolve(HubId("acme/endless"), endpoint=hub)


def test_a_certificate_that_nobody_knows_is_refused(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(HubId("acme/x"), endpoint=hub).sha == SHA
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(HubError, match=r"reading acme/x|acme/x"):
        resolve(HubId("acme/x"), endpoint=hub)
