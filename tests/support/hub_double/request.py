"""One request to the double: reading its body, answering, checking tokens and names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.support.hub_double.store import Commit, Refusal, Repo

if TYPE_CHECKING:
    from tests.support.hub_double.server import FakeHub

CHUNK = 1 << 20


class Request(BaseHTTPRequestHandler):
    """Plumbing shared by the routes; ``hub`` is set on the subclass that a server makes for itself."""

    protocol_version = "HTTP/1.1"  # keep-alive, so every answer needs a Content-Length
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms apart with it
    hub: FakeHub
    query: dict[str, str]
    body_read: bool = False
    recorded: bool = False
    cut: int | None = None

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent; ``hub.log`` is the record."""

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        super().finish()

    def body_chunks(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left > 0:
                data = self.rfile.read(min(CHUNK, left))
                if not data:
                    raise ConnectionError("the client went away")
                left -= len(data)
                yield data
        self.body_read = True

    def read_body(self) -> bytes:
        return b"".join(self.body_chunks())

    def read_json(self) -> Any:
        return json.loads(self.read_body() or b"{}")

    def record(self, status: int) -> None:
        """Log the request, once, before its answer goes out: the client may look at the log right after."""
        if not self.recorded:
            self.hub.log.append((self.command, self.path, status))
        self.recorded = True

    def answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        """Send ``body`` (bytes and str as they are, anything else as JSON)."""
        kind = "text/html" if isinstance(body, str) else "application/json; charset=utf-8"
        data = body.encode() if isinstance(body, str) else body
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        if not self.body_read:
            self.close_connection = True  # the unread body would be taken for the next request
        self.record(status)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def caller(self, *, required: bool = False) -> str | None:
        """Return the caller's token, checked; None for a visitor unless ``required``."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            if required:
                raise Refusal(401, "Invalid username or password.")
            return None
        if token != self.hub.token and token not in self.hub.read_only_tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return token

    def require_writer(self, namespace: str) -> None:
        token = self.caller(required=True)
        if token in self.hub.read_only_tokens or namespace not in (self.hub.user, *self.hub.orgs):
            rights = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            raise Refusal(403, rights)

    def repo(self, kind: str, repo_id: str) -> Repo:
        found = self.hub.repos.get((kind, repo_id))
        if found and not (found.private and self.caller() is None):
            return found
        if self.caller():
            raise Refusal(404, "Repository not found", "RepoNotFound")
        raise Refusal(401, "Invalid username or password.", "RepoNotFound")

    def commit_at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit
