"""Sizes of files on the Hub, requested before anything is downloaded."""

from __future__ import annotations

from typing import Any

from clipmerge.hub.download import connect, patiently, timeout_seconds
from clipmerge.hub.errors import explained
from clipmerge.hub.ids import HubId


def file_sizes(pinned: HubId) -> dict[str, int]:
    """Ask for the sizes of a repository's files."""
    asked: dict[str, Any] = {"revision": pinned.revision, "repo_type": pinned.kind, "timeout": timeout_seconds()}
    with explained(f"reading {pinned}"):
        info: Any = patiently(lambda: connect().repo_info(pinned.repo_id, files_metadata=True, **asked))
    return {item.rfilename: int(item.size or 0) for item in info.siblings or ()}
