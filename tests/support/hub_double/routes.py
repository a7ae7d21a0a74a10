"""The routes of the double: what each request does, and the faults before and after it."""

import base64
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.hub_double.store import (
    LFS_SUFFIXES,
    Commit,
    Entry,
    Fault,
    Refusal,
    Repo,
    git_oid,
)

if TYPE_CHECKING:
    from tests.support.hub_double.server import FakeHub

CHUNK = 1 << 20
FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---", re.S)
GITATTRIBUTES = (
    b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs"
    b" -text\n"
)


def kind_of(prefix: str | None) -> str:
    """Turn the URL prefix of a download (``datasets/``, none for models) into the repository
    type."""
    return (prefix or "models/").rstrip("/")[:-1]


class Handler(BaseHTTPRequestHandler):
    """Dispatches a request, after any fault that waits for it; a server sets ``hub`` on a subclass
    of its own."""

    protocol_version = "HTTP/1.1"  # keep-alive, so every answer needs a Content-Length
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms apart with it
    hub: "FakeHub"
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
        """Log the request, once, before its answer goes out: the client may look at the log right
        after."""
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
            rights = (
                f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
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

    # --- routes that change nothing: account, repository, tree, refs, download

    def whoami(self) -> None:
        token = self.caller(required=True)
        role = "read" if token in self.hub.read_only_tokens else "write"
        orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in self.hub.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        me = {"type": "user", "id": "1", "name": self.hub.user, "fullname": self.hub.user.title()}
        self.answer(200, {**me, "orgs": orgs, "auth": auth})

    def validate_yaml(self) -> None:
        match = FRONT_MATTER.match(self.read_json()["content"])
        yaml.safe_load(match[1])
        self.answer(200, {"errors": [], "warnings": []})

    def info(self, kind: str, repo_id: str, revision: str | None = None) -> None:
        repo = self.repo(kind, repo_id)
        commit = self.commit_at(repo, revision or "main")
        card = self._card(commit.tree.get("README.md"))
        described = {
            "id": repo.id,
            "sha": commit.oid,
            "private": repo.private,
            "gated": False,
            "tags": card.get("tags", []),
            "cardData": card,
            "siblings": [self._sibling(path, entry) for path, entry in sorted(commit.tree.items())],
        }
        self.answer(200, described)

    def _card(self, readme: Entry | None) -> dict[str, Any]:
        match = readme and FRONT_MATTER.match(self.hub.blobs[readme.oid].decode())
        try:
            card = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError:  # a card that came by git, unchecked
            card = {}
        return card if isinstance(card, dict) else {}

    def _sibling(self, path: str, entry: Entry) -> dict[str, Any]:
        described: dict[str, Any] = {"rfilename": path}
        if self.query.get("blobs"):
            described |= {"blobId": entry.oid, "size": entry.size}
            if entry.lfs:
                described["lfs"] = {"sha256": entry.lfs, "size": entry.size, "pointerSize": 134}
        return described

    def tree(self, kind: str, repo_id: str, revision: str, path: str | None = None) -> None:
        """List files and folders at any depth."""
        commit = self.commit_at(self.repo(kind, repo_id), revision)
        within = f"{path}/" if path else ""
        files = {
            name: entry for name, entry in sorted(commit.tree.items()) if name.startswith(within)
        }
        if path and not files:
            raise Refusal(
                404, f'{path} does not exist on "{revision}"', "EntryNotFound", commit.oid
            )
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        described = [entry.as_json(name) for name, entry in files.items()]
        described += [
            {"type": "directory", "oid": git_oid(b""), "size": 0, "path": each}
            for each in sorted(folders)
        ]
        self.answer(200, described)

    def download(self, repo_id: str, revision: str, path: str, prefix: str | None = None) -> None:
        commit = self.commit_at(self.repo(kind_of(prefix), repo_id), revision)
        entry = commit.tree.get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound", commit.oid)
        start, end, status = 0, entry.size - 1, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end, status = int(match[1]), min(int(match[2] or end), end), 206
        size = max(0, end - start + 1)
        self.record(status)
        self.hub.sent += size if self.command == "GET" else 0
        self.send_response(status)
        for name, value in self._file_headers(repo_id, commit.oid, path, entry).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end}/{entry.size}")
        self.end_headers()
        if self.command == "GET":
            self._send_content(entry, start, size)

    def _file_headers(self, repo_id: str, commit: str, path: str, entry: Entry) -> dict[str, str]:
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit,
            "ETag": f'"{entry.lfs or entry.oid}"',
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'inline; filename="{path.split("/")[-1]}"',
        }
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.lfs}"'}
        return headers

    def _send_content(self, entry: Entry, start: int, size: int) -> None:
        left = size
        if entry.lfs:
            with self.hub.lfs_path(entry.lfs).open("rb") as file:
                file.seek(start)
                while left > 0 and (data := file.read(min(CHUNK, left))):
                    self.wfile.write(data)
                    left -= len(data)
        else:
            self.wfile.write(self.hub.blobs[entry.oid][start : start + left])

    # --- routes that change something: repositories, uploads, commits

    def create_repo(self) -> None:
        asked = self.read_json()
        namespace, kind = asked.get("organization") or self.hub.user, asked.get("type") or "model"
        repo_id = f"{namespace}/{asked['name']}"
        self.require_writer(namespace)
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                return self.answer(
                    409, {"error": "You already created this model repo", "url": url}
                )
            repo = Repo(repo_id, kind, private=asked.get("visibility") == "private")
            self.hub.repos[kind, repo_id] = repo
            first = self.hub.keep(GITATTRIBUTES)
            repo.add_commit("refs/heads/main", {".gitattributes": first}, "initial commit")
        return self.answer(200, {"url": url, "name": repo_id, "id": "x", "private": repo.private})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        asked, repo = self.read_json(), self.repo(kind, repo_id)
        self.caller(required=True)
        self.require_writer(repo_id.split("/")[0])
        commit = self.commit_at(repo, revision)
        files = []
        for file in asked["files"]:
            path, binary = file["path"], b"\0" in base64.b64decode(file["sample"])
            large = path.endswith(LFS_SUFFIXES) or file["size"] > 10 << 20 or binary
            known = commit.tree.get(path)
            described = {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }
            files.append({**described, "oid": (known.lfs or known.oid) if known else None})
        self.answer(200, {"files": files, "commitOid": commit.oid})

    def lfs_batch(self, repo_id: str, prefix: str | None = None) -> None:
        asked = self.read_json()
        self.repo(kind_of(prefix), repo_id)
        self.caller(required=True)
        objects = [self._lfs_object(item["oid"], item["size"]) for item in asked["objects"]]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def _lfs_object(self, oid: str, size: int) -> dict[str, Any]:
        item: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if self.hub.lfs_path(oid).exists():
            return item
        upload = {"href": f"{self.hub.url}/_lfs/{oid}"}
        return item | {
            "actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/_lfs/verify"}}
        }

    def lfs_put(self, oid: str) -> None:
        partial = self.hub.lfs_path(f"{oid}.{threading.get_ident()}")
        with partial.open("wb") as file:
            file.writelines(self.body_chunks())
        partial.replace(self.hub.lfs_path(oid))
        self.answer(200, headers={"ETag": f'"{oid[:32]}"'})

    def lfs_verify(self) -> None:
        self.read_body()
        self.answer(200, {})

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.read_body().splitlines() if line.strip()]
        repo = self.repo(kind, repo_id)
        self.caller(required=True)
        with self.hub.lock:
            ref = self._target(repo, revision)
            header = lines[0]["value"]
            parent = header.get("parentCommit")
            if parent and not repo.refs[ref].startswith(parent):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repo.commits[repo.refs[ref]].tree)
            for line in lines[1:]:
                self._apply(tree, line["key"], line["value"])
            commit = repo.add_commit(ref, tree, header["summary"])
        url = f"{self.hub.url}/{repo_id}"
        done = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        self.answer(200, {**done, "hookOutput": ""})

    def _target(self, repo: Repo, revision: str) -> str:
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        self.require_writer(repo.id.split("/")[0])
        if ref not in repo.refs:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return ref

    def _apply(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self.hub.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            tree[path] = self.hub.keep_large(value["oid"], value["size"])
        else:
            del tree[path]

    # --- dispatch, and faults before and after the work

    def serve(self) -> None:
        has_body = self.command in ("POST", "PUT") or bool(self.headers.get("Content-Length"))
        self.body_read, self.recorded = not has_body, False
        path, _, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
        try:
            fault = next(
                (fault for fault in self.hub.faults if fault.hits(self.command, path)), None
            )
            if fault is None:
                self._route(path)
            else:
                self._fail(fault)
        except Refusal as refusal:
            self.answer(refusal.status, {"error": refusal.message}, refusal.headers())
        except OSError:  # the client, or a fault, closed the socket
            self.close_connection = True
        finally:
            self.record(-1)  # what had no answer

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def _fail(self, fault: Fault) -> None:
        body = {"error": f"injected {fault.status}"} if fault.body is None else fault.body
        self.answer(fault.status, body, fault.headers)

    def _route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, route in ROUTES:
            if verb == method and (match := pattern.fullmatch(path)):
                named = {
                    key: urllib.parse.unquote(value)
                    for key, value in match.groupdict().items()
                    if value
                }
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
        ("POST", rf"{API}/preupload/{REVISION}", Handler.preupload),
        ("POST", rf"{API}/commit/{REVISION}", Handler.commit),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("POST", r"/_lfs/verify", Handler.lfs_verify),
        ("PUT", LFS, Handler.lfs_put),
        ("GET", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)", Handler.download),
    )
]
