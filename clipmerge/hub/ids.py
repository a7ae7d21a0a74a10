"""Names of models and datasets on the Hub, with a revision, and a dataset's split."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from clipmerge.errors import DataError

FULL_SHA = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_ID = re.compile(rf"(?:hf://)?(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?", re.ASCII)
PREFIX = "hf://datasets/"
_SOURCE = re.compile(r"hf://datasets/(?P<id>[^:@\s]+(?:@[^:\s]+)?)(?::(?P<split>[^:\s]+))?")
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".json", ".yaml", ".git")


@dataclasses.dataclass(frozen=True)
class HubId:
    """A model or a dataset on the Hub and the revision asked for; None is the default branch."""

    repo_id: str
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        named = self.repo_id if self.kind == "model" else f"hf://datasets/{self.repo_id}"
        return named if self.revision is None else f"{named}@{self.revision}"

    def at(self, sha: str) -> HubId:
        """Return the same repository pinned to a commit."""
        return dataclasses.replace(self, revision=sha)


def parse_hub_id(source: str, kind: Literal["model", "dataset"] = "model") -> HubId | None:
    """Read ``org/name``, ``org/name@revision`` or either after ``hf://``.

    Example:
        >>> parse_hub_id("hf://openai/clip-vit-base-patch32@refs/pr/3")
        HubId(repo_id='openai/clip-vit-base-patch32', revision='refs/pr/3', kind='model')
        >>> parse_hub_id("./models/clip") is None
        True
    """
    match = _ID.fullmatch(source)
    if match is None:
        return None
    repo_id = match["repo"]
    if "--" in repo_id or ".." in repo_id or repo_id.endswith(_FILE_SUFFIXES):
        return None
    return HubId(repo_id, match["revision"], kind)


@dataclasses.dataclass(frozen=True)
class DatasetId:
    """A dataset on the Hub; ``config`` and ``split`` are ``None`` if the user did not name one."""

    hub_id: HubId
    config: str | None = None
    split: str | None = None

    def at(self, sha: str) -> str:
        """Write the source with its commit."""
        part = "/".join(name for name in (self.config, self.split) if name)
        return f"{self.hub_id.at(sha)}{':' + part if part else ''}"


def dataset_repo(source: str | None) -> str | None:
    """The id in ``hf://datasets/org/name...``; ``None`` for any other source."""
    match = _SOURCE.fullmatch(source or "")
    hub_id = parse_hub_id(match["id"], kind="dataset") if match else None
    return hub_id.repo_id if hub_id else None


def parse_dataset(source: str) -> DatasetId:
    """Read ``hf://datasets/ORG/NAME[@REVISION][:SPLIT]``; the split may be ``CONFIG/SPLIT``."""
    match = _SOURCE.fullmatch(source)
    hub_id = parse_hub_id(match["id"], kind="dataset") if match else None
    if match is None or hub_id is None:
        raise DataError(
            f"{source}: not a dataset on the Hub; write {PREFIX}ORG/NAME[@REVISION][:SPLIT]"
        )
    config, _, split = (match["split"] or "").rpartition("/")
    return DatasetId(hub_id, config or None, split or None)
