"""Reading models from the Hugging Face Hub.

A revision is resolved to a commit first, and only the commit is used from then on: the client's own
download silently falls back to a stale cache when the Hub does not answer.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmerge.errors import HubError
from clipmerge.hub.errors import explained
from clipmerge.hub.ids import FULL_SHA, HubId
from clipmerge.types import Names

_TIMEOUT = 60.0  # seconds for the answer that names the commit


@dataclass(frozen=True)
class Snapshot:
    """A model at one commit, whose files lie in the Hub's cache once they are downloaded."""

    hub_id: HubId  # its revision is the commit
    files: Names = field(default=(), repr=False)
    notes: Names = ()  # says that the Hub was not asked: the files are those in the cache

    @property
    def revision(self) -> str:
        """The commit."""
        return str(self.hub_id.revision)

    def download(self, names: Iterable[str]) -> Path:
        """Download files into the cache, and return their folder."""
        import huggingface_hub

        if self.notes:
            return _cache_of(self.hub_id) / "snapshots" / self.revision
        with explained(f"downloading {self.hub_id}"):
            folder = huggingface_hub.snapshot_download(
                self.hub_id.repo_id,
                revision=self.revision,
                allow_patterns=[glob.escape(name) for name in names],
            )
        return Path(folder)


def resolve(hub_id: HubId) -> Snapshot:
    """Ask the Hub for the commit of a revision; with ``HF_HUB_OFFLINE`` set, look in the cache."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return _cached(hub_id)
    with explained(f"reading {hub_id}"):
        info: Any = HfApi(library_name="clipmerge").model_info(
            hub_id.repo_id, revision=hub_id.revision, timeout=_TIMEOUT
        )
    _remember(hub_id, info.sha)
    return Snapshot(hub_id.at(info.sha), tuple(item.rfilename for item in info.siblings or ()))


def _cache_of(hub_id: HubId) -> Path:
    """The model's folder in the Hub's cache, whose layout huggingface_hub documents."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub_id.repo_id.replace('/', '--')}"


def _remember(hub_id: HubId, sha: str) -> None:
    """Record the revision's commit in the cache, as the client does, so that offline use finds
    it.
    """
    ref = _cache_of(hub_id) / "refs" / (hub_id.revision or "main")
    if hub_id.revision != sha:
        with contextlib.suppress(OSError):  # a read-only cache must not stop the download
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(sha, encoding="ascii")


def _cached(hub_id: HubId) -> Snapshot:
    """The commit that the cache has of a revision."""
    cache = _cache_of(hub_id)
    sha = hub_id.revision or "main"
    ref = cache / "refs" / sha
    if not FULL_SHA.fullmatch(sha) and ref.is_file():
        sha = ref.read_text(encoding="ascii").strip()
    folder = cache / "snapshots" / sha
    if not folder.is_dir():
        raise HubError(
            f"reading {hub_id}: HF_HUB_OFFLINE is set, and it is not in the cache. Go online, or"
            " give a folder."
        )
    names = tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    note = f"HF_HUB_OFFLINE is set: {hub_id} is the cached commit {sha}, not checked"
    return Snapshot(hub_id.at(sha), names, (note,))
