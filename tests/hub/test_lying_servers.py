"""Servers that lie, stall or never end: one line, within the timeout, and nothing outside the
cache."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipmerge.errors import HubError
from clipmerge.hub import bounds, download
from clipmerge.hub.download import Snapshot, download_model, resolve
from clipmerge.hub.ids import HubId
from tests.support.hub_double.client import FILE_URL


def fetch(hub_id: HubId) -> Snapshot:
    """Resolve a model and download what a merge needs of it."""
    snapshot = resolve(hub_id)
    download_model(snapshot)
    return snapshot


SHA = "a" * 40
Answer = Callable[[socket.socket, str], None]


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[None]:
    """Make a server that gives a test's answer to every request the Hub of this process."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.02)
    over = threading.Event()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            answer(connection, request.split(b" ")[1].decode())

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", url)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + FILE_URL)
            yield
    finally:
        over.set()
        thread.join()
        listening.close()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def headers(*more: str) -> bytes:
    return "\r\n".join(
        ["HTTP/1.1 200 OK", "Content-Type: application/json", *more, "", ""]
    ).encode()


def endless(connection: socket.socket, _path: str) -> None:
    connection.sendall(headers() + b'{"siblings": [')
    while True:
        connection.sendall(b'"x",' * 10_000)


def silent(_connection: socket.socket, _path: str) -> None:
    time.sleep(30)


def compressed(connection: socket.socket, _path: str) -> None:
    connection.sendall(headers("Content-Encoding: gzip", "Content-Length: 0"))


def no_commit(connection: socket.socket, _path: str) -> None:
    body = json.dumps({"id": "acme/x", "sha": "../../../x", "siblings": []}).encode()
    connection.sendall(headers(f"Content-Length: {len(body)}") + body)


def no_json(connection: socket.socket, _path: str) -> None:
    connection.sendall(headers("Content-Length: 2") + b"[]")


def tell(connection: socket.socket, path: str, name: str = "model.safetensors") -> None:
    """Answer as the Hub does about a model of one file."""
    file = {"type": "file", "path": name, "size": 3, "oid": "0" * 40}
    held = (
        [file]
        if "/tree/" in path
        else {"id": "acme/x", "sha": SHA, "siblings": [{"rfilename": file["path"]}]}
    )
    body = json.dumps(held).encode()
    connection.sendall(headers(f"Content-Length: {len(body)}") + body)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (endless, "its answer is larger than 1 MiB"),
        (silent, "no answer in time"),
        (compressed, "its answer is compressed"),
        (no_commit, "the Hub gave no commit"),
        (no_json, "reading acme/x"),
    ],
)
def test_an_answer_is_bounded(answer: Answer, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_ANSWER_BYTES", 1 << 20)
    with server(answer), pytest.raises(HubError, match=told):
        resolve(HubId("acme/x"))


@pytest.mark.slow
def test_a_download_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPMERGE_HUB_TIMEOUT", "0.3")

    def answer(connection: socket.socket, path: str) -> None:
        if "/resolve/" not in path:
            tell(connection, path)
            return
        connection.sendall(
            headers("Content-Length: 1000000", f"X-Repo-Commit: {SHA}", 'ETag: "abc"') + b"x"
        )
        silent(connection, path)

    with server(answer), pytest.raises(HubError, match="no answer in time"):
        fetch(HubId("acme/x"))


@pytest.mark.parametrize(
    ("header", "value"),
    [("ETag", "../../../evil"), ("X-Linked-Etag", "/tmp/evil"), ("X-Repo-Commit", "a\\b")],
)
def test_a_header_that_leads_out_of_the_cache_is_refused(
    tmp_path: Path, header: str, value: str
) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if "/resolve/" not in path:
            tell(connection, path)
            return
        told = {"ETag": '"abc"', "X-Repo-Commit": SHA} | {
            header: f'"{value}"' if "Etag" in header.title() else value
        }
        connection.sendall(
            headers("Content-Length: 3", *(f"{name}: {text}" for name, text in told.items()))
            + b"abc"
        )

    with (
        server(answer),
        pytest.raises(HubError, match=r"cannot be a file name|its commit is not a commit hash"),
    ):
        fetch(HubId("acme/x"))
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_name_that_leads_out_of_the_cache_is_refused(tmp_path: Path, name: str) -> None:
    def answer(connection: socket.socket, path: str) -> None:
        if "/resolve/" not in path:
            tell(connection, path, name)
        else:
            told = ("Content-Length: 3", f"X-Repo-Commit: {SHA}", 'ETag: "abc"')
            connection.sendall(headers(*told) + b"abc")

    with server(answer), pytest.raises(HubError):
        resolve(HubId("acme/x")).download([name])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(tmp_path / "cache" / "models--acme--x") for path in written)


def test_a_listing_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_FILES", 0)
    with server(tell), pytest.raises(HubError, match="lists 1 files, more than 0"):
        resolve(HubId("acme/x"))
