"""Routes that change something: repositories, refs, pull requests, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from tests.support.hub_double.reading import kind_of
from tests.support.hub_double.request import Request
from tests.support.hub_double.store import LFS_SUFFIXES, Entry, Refusal, Repo, git_oid, lfs_pointer, xet_hashes

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


class Writing(Request):
    def create_repo(self) -> None:
        asked = self.read_json()
        namespace, kind = asked.get("organization") or self.hub.user, asked.get("type") or "model"
        repo_id = f"{namespace}/{asked['name']}"
        self.require_writer(namespace)
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                return self.answer(409, {"error": "You already created this model repo", "url": url})
            repo = Repo(repo_id, kind, private=asked.get("visibility") == "private")
            self.hub.repos[kind, repo_id] = repo
            first = self.hub.keep(GITATTRIBUTES)
            repo.add_commit("refs/heads/main", {".gitattributes": first}, "initial commit")
        return self.answer(200, {"url": url, "name": repo_id, "id": "x", "private": repo.private})

    def make_branch(self, kind: str, repo_id: str, name: str) -> None:
        asked, repo = self.read_json(), self.repo(kind, repo_id)
        self.require_writer(repo_id.split("/")[0])
        ref = f"refs/heads/{name}"
        if ref in repo.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        repo.refs[ref] = self.commit_at(repo, asked.get("startingPoint", "main")).oid
        self.answer(200)

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        asked, repo = self.read_json(), self.repo(kind, repo_id)
        self.caller(required=True)
        if not self.query.get("create_pr"):
            self.require_writer(repo_id.split("/")[0])
        commit = self.commit_at(repo, revision)
        files = []
        for file in asked["files"]:
            path, binary = file["path"], b"\0" in base64.b64decode(file["sample"])
            large = path.endswith(LFS_SUFFIXES) or file["size"] > 10 << 20 or binary
            known = commit.tree.get(path)
            described = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
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
        return item | {"actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/_lfs/verify"}}}

    def lfs_put(self, oid: str) -> None:
        partial = self.hub.lfs_path(f"{oid}.{threading.get_ident()}")
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for data in self.body_chunks():
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != oid:
            partial.unlink()
            raise Refusal(400, "sha256 mismatch")
        partial.replace(self.hub.lfs_path(oid))
        self.answer(200, headers={"ETag": f'"{digest.hexdigest()[:32]}"'})

    def lfs_verify(self) -> None:
        asked = self.read_json()
        path = self.hub.lfs_path(asked["oid"])
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise Refusal(404, "LFS object not found")
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
            if self.query.get("create_pr"):
                repo.pull_requests += 1
                repo.refs[f"refs/pr/{repo.pull_requests}"] = repo.refs[ref]
                ref = f"refs/pr/{repo.pull_requests}"
            commit = repo.add_commit(ref, tree, header["summary"])
        url = f"{self.hub.url}/{repo_id}"
        done = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if self.query.get("create_pr"):
            done["pullRequestUrl"] = f"{url}/discussions/{repo.pull_requests}"
        self.answer(200, {**done, "hookOutput": ""})

    def _target(self, repo: Repo, revision: str) -> str:
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if not self.query.get("create_pr") and not ref.startswith("refs/pr/"):
            self.require_writer(repo.id.split("/")[0])
        if ref not in repo.refs:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return ref

    def _apply(self, tree: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self.hub.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            tree[path] = self._large_entry(value["oid"], value["size"])
        elif key == "deletedFile":
            if path not in tree:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            del tree[path]
        elif key == "deletedFolder":
            for name in [name for name in tree if name.startswith(path.rstrip("/") + "/")]:
                del tree[name]

    def _large_entry(self, oid: str, size: int) -> Entry:
        xet = xet_hashes(Path(self.hub.xet_cas.removeprefix("local://"))).get(oid) if self.hub.xet_cas else None
        target = self.hub.lfs_path(oid)
        if xet and not target.exists():
            self._rebuild(xet, size, target)
        if not target.exists():
            raise Refusal(400, f"object {oid} was not uploaded")
        return Entry(git_oid(lfs_pointer(oid, size)), size, oid, xet)

    def _rebuild(self, xet: str, size: int, target: Path) -> None:
        """Write a Xet upload out as one file, so that plain HTTP reads work too."""
        from hf_xet import XetFileInfo, XetSession

        expiry = int(time.time()) + 3600
        with XetSession().new_file_download_group(
            endpoint=self.hub.xet_cas, token="xet", token_expiry_unix_secs=expiry
        ) as group:
            group.start_download_file(XetFileInfo(xet, size), str(target.absolute()))
