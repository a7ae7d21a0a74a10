"""State of the double: repositories, their commits, and pending faults."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".npz", ".pt", ".parquet", ".tar")


def git_oid(data: bytes) -> str:
    """Hash ``data`` as git hashes a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Write the text that git stores in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class Entry:
    """One file of a tree; ``oid`` is the git blob's (the pointer's for LFS), ``lfs`` the content's
    sha256."""

    oid: str
    size: int
    lfs: str | None = None

    def as_json(self, path: str) -> dict[str, Any]:
        """Describe the file as the tree and paths-info routes do."""
        described: dict[str, Any] = {
            "type": "file",
            "oid": self.oid,
            "size": self.size,
            "path": path,
        }
        if self.lfs:
            described["lfs"] = {"oid": self.lfs, "size": self.size, "pointerSize": 134}
        return described


@dataclass(frozen=True)
class Commit:
    """A whole tree."""

    oid: str
    tree: dict[str, Entry]
    title: str


@dataclass
class Repo:
    """A repository: full ref names (``refs/heads/main``) to commit ids, ids to
    commits."""

    id: str
    type: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        """Find a branch, a full ref or a unique sha prefix."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return None
        hits = [commit for oid, commit in self.commits.items() if oid.startswith(revision)]
        return hits[0] if len(hits) == 1 else None

    def add_commit(self, ref: str, tree: dict[str, Entry], title: str) -> Commit:
        """Record ``tree`` as the new head of ``ref``."""
        files = sorted((path, entry.oid) for path, entry in tree.items())
        identity = json.dumps([files, self.refs.get(ref), title, len(self.commits)])
        commit = Commit(hashlib.sha1(identity.encode()).hexdigest(), dict(tree), title)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit


@dataclass
class Fault:
    """What happens to the next ``times`` requests that match; the first fault that matches is
    applied.
    """

    method: str
    path: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | str | None = None

    def hits(self, method: str, path: str) -> bool:
        """Say whether this request is to fail, and count it."""
        if self.times < 1 or self.method not in (method, "*") or not re.search(self.path, path):
            return False
        self.times -= 1
        return True


class Refusal(Exception):
    """An answer other than 200, in the form the Hub gives it."""

    def __init__(
        self, status: int, message: str, code: str | None = None, commit: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit

    def headers(self) -> dict[str, str]:
        """Build the X- headers that the client turns into its exception classes."""
        named = {
            "X-Error-Message": self.message,
            "X-Error-Code": self.code,
            "X-Repo-Commit": self.commit,
        }
        return {"X-Request-Id": f"Root=1-{id(self):x}"} | {k: v for k, v in named.items() if v}
