"""A small Hub on localhost for the real client: it keeps repositories by commit, serves their files,
and fails where a test says so.

It speaks HTTP/1.0, so a connection carries one request.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

#: A repository's files at one commit.
Files = dict[str, bytes]
FILE_URL = "/{repo_id}/resolve/{revision}/{filename}"
REPOSITORY = re.compile(
    r"/api/(?P<repo>(?:model|dataset)s/[^/]+/[^/]+)"
    r"(?:/(?P<part>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?"
)
FILE = re.compile(
    r"/(?P<datasets>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)


@dataclass
class Fault:
    """The answer to the next ``times`` requests with this method and a path in which this regex is
    found.
    """

    method: str
    path: str
    status: int = 500
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer of 404, whose code the client turns into its exception class."""


class FakeHub:
    """The Hub, which lives as long as its ``with`` block."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Files]] = {}  # each a dictionary of commits, in order
        self.faults: list[Fault] = []
        self.log: list[str] = []  # methods and paths
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, *what: Any, **more: Any) -> None:
        """Inject a `Fault`."""
        self.faults.append(Fault(*what, **more))

    def commit(self, repo: str, changes: Files) -> str:
        """Add or replace files of ``models/ORG/NAME`` or ``datasets/ORG/NAME``; the commit."""
        commits = self.repos.setdefault(repo, {})
        earlier = commits[[*commits][-1]] if commits else {}
        sha = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[sha] = earlier | changes
        return sha

    def find(self, repo: str, revision: str = "main") -> tuple[str, Files]:
        """A commit and its files."""
        commits = self.repos.get(repo)
        if commits is None:
            raise Refusal("RepoNotFound")
        sha = list(commits)[-1] if revision == "main" else revision
        if sha not in commits:
            raise Refusal("RevisionNotFound")
        return sha, commits[sha]


class Handler(BaseHTTPRequestHandler):
    """Answers one request; a server sets ``hub`` on a subclass of its own."""

    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent; ``hub.log`` is the record."""

    def answer(
        self, body: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def serve(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.log.append(f"{self.command} {path}")
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, path):
                fault.times -= 1
                return self.answer({"error": "injected"}, fault.status, fault.headers)
        try:
            self.route(path)
        except Refusal as refusal:
            self.answer({}, 404, {"X-Error-Code": str(refusal)})

    do_GET = do_HEAD = serve

    def route(self, path: str) -> None:
        if file := FILE.fullmatch(path):
            self.download(**{name: unquote(part or "") for name, part in file.groupdict().items()})
        elif repository := REPOSITORY.fullmatch(path):
            words = {name: unquote(part or "") for name, part in repository.groupdict().items()}
            self.repository(**words)
        else:
            raise Refusal("")

    def download(self, datasets: str, repo: str, revision: str, path: str) -> None:
        sha, files = self.hub.find(f"{datasets or 'models/'}{repo}", revision)
        if path not in files:
            raise Refusal("EntryNotFound")
        etag = hashlib.sha256(files[path]).hexdigest()
        self.answer(files[path], headers={"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    def repository(self, repo: str, part: str, revision: str, path: str) -> None:
        if part == "tree":
            self.answer(self.tree(repo, revision, path))
        else:
            sha, files = self.hub.find(repo, revision or "main")
            siblings = [{"rfilename": name} for name in sorted(files)]
            self.answer({"id": repo.partition("/")[2], "sha": sha, "siblings": siblings})

    def tree(self, repo: str, revision: str, path: str) -> list[dict[str, Any]]:
        """Files and folders at any depth below a path."""
        _, files = self.hub.find(repo, revision)
        inside = {name: data for name, data in files.items() if f"/{name}".startswith(f"/{path}")}
        if not inside:
            raise Refusal("EntryNotFound")
        folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents} - {"."}
        return [
            *({"type": "directory", "oid": "", "size": 0, "path": name} for name in folders),
            *(
                {"type": "file", "oid": "", "size": len(data), "path": name}
                for name, data in inside.items()
            ),
        ]


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve an empty Hub to this process: its own cache, a token, Xet off, no waits.

    The client reads its variables at import, so its constants are set instead.
    """
    home = folder / "hf-home"
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for module in (_http, file_download):  # which sleep between retries
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _seconds: None))
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + FILE_URL)
        yield hub
    huggingface_hub.close_session()


def upload(hub: FakeHub, repo_id: str, files: Files | Path, *, kind: str = "model") -> str:
    """Commit these files, or a folder's, to a model or a dataset; the commit."""
    if isinstance(files, Path):
        files = {file.name: file.read_bytes() for file in files.iterdir()}
    return hub.commit(f"{kind}s/{repo_id}", files)
