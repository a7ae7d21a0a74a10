"""A small Hub in memory behind the real client: it keeps repositories by commit, serves their
files, and fails where a test says so.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
#: The client's HTTP library, which was httpx and is httpx2.
http: Any = sys.modules[type(huggingface_hub.get_session()).__module__]
REPOSITORY = re.compile(
    r"/api/((?:model|dataset)s/[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?"
)
FILE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class FakeHub:
    """The Hub. Its repositories are named ``models/ORG/NAME`` or ``datasets/ORG/NAME``."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, Files]] = {}  # each a dictionary of commits, in order
        self.fault: tuple[int, str] | None = None  # of every answer
        self.log: list[str] = []

    def answer(self, request: Any) -> Any:
        """Answer a request of the client: with a fault of status 0, not at all."""
        path = request.url.raw_path.decode().partition("?")[0]
        self.log.append(path)
        fault = self.fault
        try:
            if fault is None:
                return http.Response(200, **self.content(path))
        except LookupError as error:
            fault = (404, error.args[0])
        status, code = fault
        if not status:
            raise http.ConnectError("no route to the Hub")
        return http.Response(status, headers={"X-Error-Code": code})

    def content(self, path: str) -> dict[str, Any]:
        if file := FILE.fullmatch(path):
            return self.file(*map(unquote, file.groups()))
        if found := REPOSITORY.fullmatch(path):
            return {"json": self.listing(*(unquote(part or "") for part in found.groups()))}
        raise LookupError("")

    def find(self, repo: str, revision: str) -> tuple[str, Files]:
        """A commit and its files."""
        if repo not in self.repos:
            raise LookupError("RepoNotFound")
        commits = self.repos[repo]
        sha = [*commits][-1] if revision in ("", "main") else revision
        if sha not in commits:
            raise LookupError("RevisionNotFound")
        return sha, commits[sha]

    def file(self, repo: str, revision: str, path: str) -> dict[str, Any]:
        sha, files = self.find(repo if "datasets/" in repo else f"models/{repo}", revision)
        if path not in files:
            raise LookupError("EntryNotFound")
        etag = hashlib.sha256(files[path]).hexdigest()
        return {"content": files[path], "headers": {"ETag": f'"{etag}"', "X-Repo-Commit": sha}}

    def listing(self, repo: str, part: str, revision: str, path: str) -> Any:
        """A repository's commit and files, or the files and folders at any depth below a path."""
        sha, files = self.find(repo, revision)
        if part != "tree":
            siblings = [{"rfilename": name} for name in sorted(files)]
            return {"id": repo.partition("/")[2], "sha": sha, "siblings": siblings}
        inside = [name for name in files if f"/{name}".startswith(f"/{path}")]
        if not inside:
            raise LookupError("EntryNotFound")
        folders = {str(parent) for name in inside for parent in PurePosixPath(name).parents} - {"."}
        kinds = [("directory", name, 0) for name in folders]
        kinds += [("file", name, len(files[name])) for name in inside]
        return [{"type": kind, "oid": "", "size": n, "path": name} for kind, name, n in kinds]


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
    hub = FakeHub()
    transport = http.MockTransport(hub.answer)
    hooks = {"request": [_http.hf_request_event_hook]}  # which refuses when offline
    huggingface_hub.set_client_factory(lambda: http.Client(transport=transport, event_hooks=hooks))
    yield hub
    huggingface_hub.set_client_factory(_http.default_client_factory)


def upload(hub: FakeHub, repo_id: str, files: Files | Path, *, kind: str = "model") -> str:
    """Commit these files, or a folder's, to a model or a dataset; the commit."""
    if isinstance(files, Path):
        files = {file.name: file.read_bytes() for file in files.iterdir()}
    commits = hub.repos.setdefault(f"{kind}s/{repo_id}", {})
    earlier = commits[[*commits][-1]] if commits else {}
    sha = hashlib.sha1(f"{repo_id} {len(commits)}".encode()).hexdigest()
    commits[sha] = earlier | files
    return sha
