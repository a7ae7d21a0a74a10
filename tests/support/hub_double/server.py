"""The server, and what it holds."""

import contextlib
import re
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.hub_double.routes import Handler
from tests.support.hub_double.store import (
    Entry,
    Fault,
    Refusal,
    Repo,
    git_oid,
    lfs_pointer,
)


class Server(ThreadingHTTPServer):
    """Says nothing of clients that gave up: what it printed would be in the next command's
    stderr."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class FakeHub:
    """A Hub on localhost that lives as long as its ``with`` block."""

    def __init__(self, root: Path) -> None:
        self.root, self.token, self.user = root, "hf_test", "alice"
        self.orgs: tuple[str, ...] = ("acme",)
        (root / "lfs").mkdir(parents=True, exist_ok=True)
        self.blobs: dict[str, bytes] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.read_only_tokens: set[str] = set()
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []
        self.sent = 0  # bytes of files that were asked for
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Go down, taking keep-alive connections along: they outlive the listener."""
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fail(self, method: str, path: str, **what: Any) -> Fault:
        """Inject a fault for the next requests whose method and path (a regex) match; see
        ``Fault``."""
        fault = Fault(method, path, **what)
        self.faults.append(fault)
        return fault

    def requests(self, method: str, path: str) -> list[tuple[str, str, int]]:
        """List the logged requests whose method and path (a regex) match."""
        return [entry for entry in self.log if entry[0] == method and re.search(path, entry[1])]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, Entry]:
        """Return the tree of a model at a revision."""
        commit = self.repos["model", repo_id].resolve(revision)
        return commit.tree

    def content(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """Return a file of a model as it would be downloaded."""
        entry = self.files(repo_id, revision)[path]
        return self.lfs_path(entry.lfs).read_bytes() if entry.lfs else self.blobs[entry.oid]

    def keep(self, data: bytes) -> Entry:
        """Store a small file's bytes and return its tree entry."""
        oid = git_oid(data)
        self.blobs[oid] = data
        return Entry(oid, len(data))

    def lfs_path(self, name: str) -> Path:
        return self.root / "lfs" / name

    def keep_large(self, oid: str, size: int) -> Entry:
        """Return the tree entry of a large file that was uploaded."""
        target = self.lfs_path(oid)
        if not target.exists():
            raise Refusal(400, f"object {oid} was not uploaded")
        return Entry(git_oid(lfs_pointer(oid, size)), size, oid)
