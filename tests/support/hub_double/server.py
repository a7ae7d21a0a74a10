"""The server: routes, dispatch, and faults before and after the work."""

import contextlib
import re
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.hub_double.routes import Routes
from tests.support.hub_double.store import Entry, Fault, Refusal, Repo, git_oid


class Server(ThreadingHTTPServer):
    """Says nothing of clients that gave up: what it printed would be in the next command's stderr."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class FakeHub:
    """A Hub on localhost that lives as long as its ``with`` block."""

    def __init__(self, root: Path) -> None:
        self.root, self.token, self.user = root, "hf_test", "alice"
        self.orgs: tuple[str, ...] = ("acme",)
        self.xet_cas: str | None = None
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
        """Inject a fault for the next requests whose method and path (a regex) match; see ``Fault``."""
        fault = Fault(method, path, **what)
        self.faults.append(fault)
        return fault

    def requests(self, method: str, path: str) -> list[tuple[str, str, int]]:
        """List the logged requests whose method and path (a regex) match."""
        return [entry for entry in self.log if entry[0] == method and re.search(path, entry[1])]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, Entry]:
        """Return the tree of a model at a revision."""
        commit = self.repos["model", repo_id].resolve(revision)
        assert commit is not None
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


class Handler(Routes):
    """Dispatches one request, after any fault that waits for it."""

    def serve(self) -> None:
        has_body = self.command in ("POST", "PUT") or bool(self.headers.get("Content-Length"))
        self.body_read, self.recorded, self.cut = not has_body, False, None
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        try:
            fault = next((fault for fault in self.hub.faults if fault.hits(self.command, path)), None)
            if fault is None or not self._fail(fault):
                self._route(path)
        except Refusal as refusal:
            self.answer(refusal.status, {"error": refusal.message}, refusal.headers())
        except OSError:  # the client, or a fault, closed the socket
            self.close_connection = True
        finally:
            self.record(-1)  # what had no answer

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def _fail(self, fault: Fault) -> bool:
        """Apply a fault; return False when the request goes on as normal."""
        time.sleep(fault.delay)
        if fault.cut_after is not None:
            self.rfile.read(fault.cut_after)
            self.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionError("cut by a fault")
        if fault.lose_answer:
            self.answer = lambda *_args, **_kwargs: self.hang_up()  # type: ignore[method-assign]
            return False
        if fault.cut_response is not None:
            self.cut = fault.cut_response
            return False
        if not fault.status:
            return False
        body = {"error": f"injected {fault.status}"} if fault.body is None else fault.body
        self.answer(fault.status, body, fault.headers)
        return True

    def _route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, route in ROUTES:
            if verb == method and (match := pattern.fullmatch(path)):
                named = {key: urllib.parse.unquote(value) for key, value in match.groupdict().items() if value}
                return route(self, **named)
        raise Refusal(404, "Sorry, we can't find the page you are looking for.")


ID = r"(?P<repo_id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>model|dataset)s/{ID}"
FILES = rf"/(?P<prefix>datasets/)?{ID}"
REVISION = r"(?P<revision>[^/]+)"
LFS = r"/_lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = [
    (method, re.compile(pattern), route)
    for method, pattern, route in (
        ("GET", r"/api/whoami-v2", Handler.whoami),
        ("POST", r"/api/repos/create", Handler.create_repo),
        ("POST", r"/api/validate-yaml", Handler.validate_yaml),
        ("GET", API, Handler.info),
        ("GET", rf"{API}/revision/{REVISION}", Handler.info),
        ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", Handler.tree),
        ("POST", rf"{API}/branch/(?P<name>[^/]+)", Handler.make_branch),
        ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
        ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
        ("GET", rf"{API}/xet-(?P<access>read|write)-token/{REVISION}", Handler.xet_token),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("POST", r"/_lfs/verify", Handler.lfs_verify),
        ("PUT", LFS, Handler.lfs_put),
        ("GET", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)", Handler.download),
    )
]
