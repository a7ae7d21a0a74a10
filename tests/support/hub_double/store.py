"""State of the double: repositories, their commits, and pending faults."""

import hashlib
import json
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOOKEND = b"\xff" * 32
LFS_SUFFIXES = (".safetensors", ".bin", ".npz", ".pt", ".parquet", ".tar")


def git_oid(data: bytes) -> str:
    """Hash ``data`` as git hashes a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Write the text that git stores in place of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def xet_hashes(cas_folder: Path) -> dict[str, str]:
    """Map sha256 to Xet file hash, read from the shards that hf_xet wrote to a ``local://``
    store."""

    def text(digest: bytes) -> str:  # a MerkleHash prints as four little-endian u64
        return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))

    found = {}
    for shard in cas_folder.rglob("xorbs/shards/*.mdb"):
        data, at = (
            shard.read_bytes(),
            48,
        )  # the header: 32 bytes of tag, 8 of version, 8 of footer size
        while data[at : at + 32] != BOOKEND:
            file_hash = data[at : at + 32]
            flags, entries = struct.unpack("<II", data[at + 32 : at + 40])
            at += 48 + 48 * entries
            at += 48 * entries * (flags >> 31 & 1)  # verification entries
            if flags >> 30 & 1:  # a metadata entry: the sha256
                found[text(data[at : at + 32])] = text(file_hash)
                at += 48
    return found


@dataclass(frozen=True)
class Entry:
    """One file of a tree; ``oid`` is the git blob's (the pointer's for LFS), ``lfs`` the content's
    sha256."""

    oid: str
    size: int
    lfs: str | None = None
    xet: str | None = None

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
        if self.xet:
            described["xetHash"] = self.xet
        return described


@dataclass(frozen=True)
class Commit:
    """A whole tree."""

    oid: str
    tree: dict[str, Entry]
    title: str


@dataclass
class Repo:
    """A repository: full ref names (``refs/heads/main``, ``refs/pr/1``) to commit ids, ids to
    commits."""

    id: str
    type: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: int = 0

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

    ``status=0`` only waits ``delay`` seconds. ``cut_after`` reads so many bytes of the request and
    closes the socket; ``cut_response`` sends so many bytes of a file; ``lose_answer`` works, then
    is silent.
    """

    method: str
    path: str
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | str | None = None
    delay: float = 0.0
    cut_after: int | None = None
    cut_response: int | None = None
    lose_answer: bool = False

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
