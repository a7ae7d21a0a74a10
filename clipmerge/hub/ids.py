"""Names of models and datasets on the Hub, with a revision."""

from __future__ import annotations

import dataclasses
import re

FULL_SHA = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_ID = re.compile(rf"(?:hf://)?(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s@]+))?", re.ASCII)
_DATASET = re.compile(rf"hf://datasets/(?P<repo>{_NAME}/{_NAME})(?:@[^:\s]+)?(?::\S+)?", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".json", ".yaml", ".git")


@dataclasses.dataclass(frozen=True)
class HubId:
    """A model on the Hub and the revision asked for; None is the default branch."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"

    def at(self, sha: str) -> HubId:
        """Return the same repository pinned to a commit."""
        return dataclasses.replace(self, revision=sha)


def parse_hub_id(source: str) -> HubId | None:
    """Read ``org/name``, ``org/name@revision`` or either after ``hf://``.

    Example:
        >>> parse_hub_id("hf://openai/clip-vit-base-patch32@refs/pr/3")
        HubId(repo_id='openai/clip-vit-base-patch32', revision='refs/pr/3')
        >>> parse_hub_id("./models/clip") is None
        True
    """
    match = _ID.fullmatch(source)
    if match is None:
        return None
    repo_id = match["repo"]
    if "--" in repo_id or ".." in repo_id or repo_id.endswith(_FILE_SUFFIXES):
        return None
    return HubId(repo_id, match["revision"])


def dataset_repo(source: str | None) -> str | None:
    """The id in ``hf://datasets/org/name...``; ``None`` for any other source.

    Example:
        >>> dataset_repo("hf://datasets/acme/cars@main:test"), dataset_repo("cars")
        ('acme/cars', None)
    """
    match = _DATASET.fullmatch(source or "")
    return match["repo"] if match else None
