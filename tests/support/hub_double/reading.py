"""Routes that change nothing: account, repository, tree, refs, download."""

from __future__ import annotations

import re
import time
from pathlib import PurePosixPath
from typing import Any

import yaml

from tests.support.hub_double.request import CHUNK, Request
from tests.support.hub_double.store import Entry, Refusal, git_oid

FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---", re.S)


def kind_of(prefix: str | None) -> str:
    """Turn the URL prefix of a download (``datasets/``, none for models) into the repository type."""
    return (prefix or "models/").rstrip("/")[:-1]


class Reading(Request):
    def whoami(self) -> None:
        token = self.caller(required=True)
        role = "read" if token in self.hub.read_only_tokens else "write"
        orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in self.hub.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        me = {"type": "user", "id": "1", "name": self.hub.user, "fullname": self.hub.user.title()}
        self.answer(200, {**me, "orgs": orgs, "auth": auth})

    def validate_yaml(self) -> None:
        match = FRONT_MATTER.match(self.read_json()["content"])
        if not match:
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self.answer(200, {"errors": [], "warnings": [warning]})
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            problem = {"error": "Invalid metadata", "errors": [{"message": str(error)}], "warnings": []}
            return self.answer(400, problem)
        return self.answer(200, {"errors": [], "warnings": []})

    def info(self, kind: str, repo_id: str, revision: str | None = None) -> None:
        repo = self.repo(kind, repo_id)
        commit = self.commit_at(repo, revision or "main")
        card = self._card(commit.tree.get("README.md"))
        described = {
            "_id": "x",
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": commit.date,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": card.get("tags", []),
            "cardData": card,
            "downloads": 0,
            "likes": 0,
            "library_name": card.get("library_name"),
            "pipeline_tag": card.get("pipeline_tag"),
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
        commit = self.commit_at(self.repo(kind, repo_id), revision)
        folder = PurePosixPath(path or "")
        recursive = self.query.get("recursive", "").lower() == "true"
        listed: list[dict[str, Any]] = []
        folders: set[PurePosixPath] = set()
        for name, entry in sorted(commit.tree.items()):
            file = PurePosixPath(name)
            if folder not in file.parents:
                continue
            folders |= {p for p in file.parents if folder in p.parents and (recursive or p.parent == folder)}
            if recursive or file.parent == folder:
                listed.append(entry.as_json(name))
        listed += [_folder_json(str(name)) for name in sorted(folders)]
        if path and not listed:
            raise Refusal(404, f'{path} does not exist on "{revision}"', "EntryNotFound", commit.oid)
        self.answer(200, listed)

    def commits(self, kind: str, repo_id: str, revision: str) -> None:
        repo, listed = self.repo(kind, repo_id), []
        commit = self.commit_at(repo, revision)
        while True:
            author = [{"user": self.hub.user}]
            listed.append({"id": commit.oid, "title": commit.title, "message": "", "date": commit.date})
            listed[-1]["authors"] = author
            if commit.parent is None:
                return self.answer(200, listed)
            commit = repo.commits[commit.parent]

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
        if entry.xet and self.hub.xet_cas:
            route = f"{self.hub.url}/api/models/{repo_id}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": route}
        return headers

    def _send_content(self, entry: Entry, start: int, size: int) -> None:
        left = size if self.cut is None else min(size, self.cut)
        if entry.lfs:
            with self.hub.lfs_path(entry.lfs).open("rb") as file:
                file.seek(start)
                while left > 0 and (data := file.read(min(CHUNK, left))):
                    self.wfile.write(data)
                    left -= len(data)
        else:
            self.wfile.write(self.hub.blobs[entry.oid][start : start + left])
        if self.cut is not None:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the socket in mid-answer."""
        self.cut = None
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def xet_token(self, kind: str, repo_id: str, access: str, revision: str) -> None:
        if not self.hub.xet_cas:
            raise Refusal(404, "Xet is not available on this server")
        self.repo(kind, repo_id)
        store, expiry = self.hub.xet_cas, int(time.time()) + 3600
        named = {"Cas-Url": store, "Access-Token": f"xet-{access}", "Token-Expiration": str(expiry)}
        headers = {f"X-Xet-{name}": value for name, value in named.items()}
        self.answer(200, {"casUrl": store, "accessToken": f"xet-{access}", "exp": expiry}, headers)


def _folder_json(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path}
